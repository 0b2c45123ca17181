"""Networks opened from a recipe, a checkpoint or a published file, and what their tokens mean.

Training them is not done here.
"""
