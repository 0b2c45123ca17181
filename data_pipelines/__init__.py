"""Bytes on disk to batches and back. Knows no model, no Ray and no DeepSpeed."""
