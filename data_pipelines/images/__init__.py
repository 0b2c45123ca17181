"""Image datasets: reading samples by id and turning them into batches.

Making datasets is in `images.packing`, pixels in `images.decoders`.
"""
