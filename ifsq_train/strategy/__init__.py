"""Engines that update networks: plain torch and DeepSpeed ZeRO, optimizers, fragments.

What is computed in a step is a task's.
"""
