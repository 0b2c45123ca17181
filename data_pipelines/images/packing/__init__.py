"""From image folders, Parquet files and tars to an indexed dataset: what `ifsq data pack` and
`index` do.

Reading a finished dataset is in `images`, decoding in `images.decoders`.
"""
