"""Observing requests and decoding: observers, and records of what they are told."""
