"""Metrics of runs: names, Prometheus, JSONL, progress, goodput.

Quality measures are in `evaluation`.
"""
