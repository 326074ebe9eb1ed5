"""Loops, threads and budgets. This layer knows nothing of arrays, xarray or zarr."""
