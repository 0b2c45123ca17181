"""Draws images from trained generators and writes them.

The networks are in `models`.
"""
