"""`ifsq demo`: the whole pipeline on small images, and its report.

Its stages are the ordinary commands'.
"""
