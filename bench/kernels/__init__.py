"""Benchmarks of the kernels: `python -m bench.kernels.cpu`, `python -m bench.kernels.gpu`, then `.fit`."""
