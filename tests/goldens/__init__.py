"""Reference values derived in float64 from the formulas, with NumPy only.

They are committed, so that parity can fail in every clone. After a change of `formulas` or
`networks` write them anew with ``python -m tests.goldens``.
"""
