"""Watching runs: Prometheus server, terminal view, progress lines.

Metrics are defined in `ifsq_train.metrics`.
"""
