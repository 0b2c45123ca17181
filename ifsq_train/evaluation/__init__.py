"""Measures of reconstructions, samples and codes, and the result schema.

Drawing samples is in `sampling`.
"""
