"""Codecs: decoding and encoding chunks with plain functions, or with zarr's own codecs."""
