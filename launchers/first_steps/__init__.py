"""What a newcomer runs first: checks of the machine, and recipes written for a dataset.

The commands that then train, encode and draw are the ordinary ones.
"""
