"""The checkpoint format, its reader and writer, the fence and retention.

What a run puts into a checkpoint is decided in `training`.
"""
