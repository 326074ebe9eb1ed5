"""Metadata documents: reading a hierarchy in few round trips, and the order of writing one."""
