"""Lazy arrays: the chain of adapters around a backend's array, and how each is read."""
