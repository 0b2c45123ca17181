"""Pages and charts made of results.

What the numbers are is computed elsewhere.
"""
