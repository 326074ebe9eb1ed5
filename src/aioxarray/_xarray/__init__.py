"""The only place that touches xarray's internals: finding, reading, assigning lazy variables."""
