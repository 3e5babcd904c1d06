"""Benchmarks of attention: `python -m bench.attention.cpu`."""

import os

# numba and torch bring an OpenMP each; threads of one that spin while the other works cost milliseconds
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
