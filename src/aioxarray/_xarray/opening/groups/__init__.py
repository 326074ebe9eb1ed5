"""Opening the groups of a Zarr store whose metadata is all known."""
