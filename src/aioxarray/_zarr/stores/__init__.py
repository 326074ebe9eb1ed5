"""Stores: requests to them and their limits, what reads share, and the identity of a store."""
