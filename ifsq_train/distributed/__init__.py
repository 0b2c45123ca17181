"""Rank and world, collectives, and agreement of all ranks on stopping.

No engine and no data.
"""
