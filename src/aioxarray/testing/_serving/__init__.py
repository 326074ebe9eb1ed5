"""The parts of `aioxarray.testing.ObjectServer`."""
