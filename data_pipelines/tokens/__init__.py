"""Token datasets: the shard format, writer, reader and verification.

Nothing here knows a network.
"""
