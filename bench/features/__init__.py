"""What learning a dictionary costs: `python -m bench.features.step` on a CPU, `python -m bench.features.gpu` on a GPU."""
