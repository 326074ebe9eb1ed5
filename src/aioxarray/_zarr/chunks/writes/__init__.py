"""Writing chunks and shards, and the ones that a store has already."""
