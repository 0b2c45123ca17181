"""Mutation testing: small faults are put into a module, one at a time; some test must fail.

``make mutate MODULE=ifsq_train/checkpoint/retention.py SAMPLE=40 SEED=1`` runs cosmic-ray on a copy
of the checkout. `targets.py` says which tests guard a module; `results.md` holds what was found.
"""
