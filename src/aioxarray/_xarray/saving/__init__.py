"""Saves: recording what xarray would store, encoding it, and handing it over for writing."""
