"""Saving to Zarr and netCDF: recording what xarray would store, encoding and writing it."""
