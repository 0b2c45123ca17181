"""Controlled comparisons: a study's variants and stages, its results, verdicts and report.

What runs the stages is `launchers.study`.
"""
