"""Lazy variables: finding them in xarray objects, loading them, putting them in place."""
