"""The codec pipeline, which reads and writes the chunks and shards of a selection."""
