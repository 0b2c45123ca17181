"""Measuring tokenizers and generators; every measure streams and counts each sample once."""
