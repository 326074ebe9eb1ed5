"""Streams: objects that are loaded before their consumer asks for them."""
