"""Loss terms as plain functions of tensors.

Weighting and combining them is a task's.
"""
