"""Image shards: packing, indexing, reading, decoding."""
