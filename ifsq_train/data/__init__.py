"""Batches for the training loop, from images or token shards.

File formats and order are in `data_pipelines`.
"""
