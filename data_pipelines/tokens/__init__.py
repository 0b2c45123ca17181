"""Image tokens on disk: packed, named after the tokenizer that made them, read by sample."""
