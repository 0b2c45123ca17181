"""Outputs and files compared with other projects' own code; each test skips where it is missing.

`make test-peers` runs them in an environment of their own, which has every one of the projects.
"""
