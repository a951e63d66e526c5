"""Hostile input: see `__main__.py`."""
