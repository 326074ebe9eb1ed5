"""Chunks: the codec pipeline that reads and writes the chunks and shards of a selection."""
