"""Encoded bytes to pixels: the decoder protocol, its CPU and DALI implementations, exact pixel
arithmetic.

Which crop is taken is decided in `data_pipelines.views`.
"""
