"""A server that loads windows of a remote Zarr for many clients, while much goes wrong."""
