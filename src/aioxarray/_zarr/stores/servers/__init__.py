"""Servers: which stores share one, how many requests it takes, and what it says of missing keys."""
