"""Hostile input: see `benchmarks/hostile/__main__.py`."""
