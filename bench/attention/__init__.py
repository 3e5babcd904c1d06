"""Attention's kernels beside their peers."""
