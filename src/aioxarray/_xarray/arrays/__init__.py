"""Lazy arrays: xarray's chain of adapters around a backend's array, and how to read them."""
