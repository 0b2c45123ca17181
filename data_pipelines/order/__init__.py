"""The order of samples as a pure function of the step: plans and mixes of datasets.

Nothing here reads data.
"""
