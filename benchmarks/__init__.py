"""Benchmarks: aioxarray beside plain xarray, in one run, on the same data.

``python -m benchmarks`` (or ``make bench``) runs all and prints a table; ``--only NAME`` runs
some of them. Each module here is one group of rows.
"""
