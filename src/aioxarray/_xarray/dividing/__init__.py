"""Dividing xarray objects into pieces: where the pieces begin, and their order."""
