"""Everything that runs on Ray: training workers, actor pools, jobs; the only place that imports
ray.

What a worker computes is in `ifsq_train`.
"""
