"""Encodes images into token shards, exactly once.

Which actors do it is decided in `launchers`.
"""
