"""Mutation testing: small faults are put into a module, one at a time; some test must fail.

``make mutate MODULE=ifsq_train/checkpoint/retention.py SAMPLE=40 SEED=1`` takes a seeded sample of
one module's mutants, ``make mutate`` one of all rooms of the core (`rooms`), and
``python -m tests.mutation --known`` the faults that no test noticed once (`known_faults`).

The mutants are cosmic-ray's and a few kinds more (`operators`). A place in the source is drawn
first and then one of its mutants, so that an arithmetic operator, which has eleven, counts no more
than a missing check. Annotations, messages and log lines are left out.

Nothing is imported again for a fault inside a function: the tests are collected once, each mutant
is a fork of that process in which the function has its new code (`live_code`, `forked`), and only
tests run that call it (`reach`), the quick ones of its own folder first, up to the first failure.
Other faults are written to a copy of the checkout and run in a fork that holds the libraries
(`fresh`). `results.md` holds what was found, `equivalents.json` the mutants that change nothing.
"""
