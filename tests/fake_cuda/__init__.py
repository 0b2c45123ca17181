"""What a GPU would run, on machines without one.

torch's fake tensors know device, shape, type and layout, and no values. A small library makes this
build believe in one CUDA device, so that they can say they are on it: operators then take the paths
and types of a GPU, nothing is computed and nothing can be timed. `cases` runs every task's step and
the uses of trained networks that way at the paper's sizes, and `table.json` holds what was counted.
"""
