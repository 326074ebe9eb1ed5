"""Metadata documents: reading a hierarchy in few round trips, and writing one in a safe order."""
