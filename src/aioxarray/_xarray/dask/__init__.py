"""Dask arrays: computing and storing them off the caller's event loop, and their names."""
