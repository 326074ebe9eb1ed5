"""Benchmarks that compare aioxarray with plain xarray, in one run and on the same data.

``python -m benchmarks`` (or ``make bench``) runs all of them and prints a table; ``--only NAME``
runs some. Most modules here are one group of rows.
"""
