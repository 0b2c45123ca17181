"""Helpers of the tests and benchmarks: small inputs, servers, processes, reference tensors.

No tests here, and nothing that only one test uses.
"""
