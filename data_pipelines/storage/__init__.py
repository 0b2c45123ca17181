"""Local folders and S3 prefixes behind one interface, and atomic local writes.

Formats of the files stored there belong to their own packages.
"""
