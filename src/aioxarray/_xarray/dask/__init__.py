"""Dask arrays: computing and storing them off the caller's loop, and their names."""
