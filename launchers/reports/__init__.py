"""Reports and comparisons of any runs: what `ifsq report` and `ifsq compare` show.

Elements of pages are in `ifsq_train.report`; the demo's own headline numbers are in `demo`.
"""
