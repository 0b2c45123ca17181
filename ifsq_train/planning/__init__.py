"""Estimates of memory, FLOPs, communication and time from arithmetic.

Nothing is run.
"""
