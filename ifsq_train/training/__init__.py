"""What a running worker holds besides the loop: saved state, averages, watchdog, failure,
profiling.

The loop itself is `ifsq_train.train`.
"""
