"""Codecs: decoding and encoding chunks by plain functions, or by zarr's own codecs."""
