"""Turns a recipe into the objects of a run: task, strategy, latent scaling.

Only composition; computation belongs to the packages below.
"""
