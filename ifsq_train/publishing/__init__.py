"""Trained networks in the layouts that other programs open.

`model_folder` writes a network as model hubs store it, `diffusers_folder` as diffusers does.
"""
