"""Lazy variables: finding them in xarray objects, loading them, and assigning their values."""
