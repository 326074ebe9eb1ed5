"""Demo, ``python -m aioxarray demo``: load real data with plain xarray and with aioxarray."""

from aioxarray._demo.showing import DemoError, Options, run

__all__ = ["DemoError", "Options", "run"]
