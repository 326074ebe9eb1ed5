"""Event loops, threads and budgets, independent of arrays, xarray and zarr."""
