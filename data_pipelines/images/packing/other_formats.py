"""Datasets in formats of other programs: what they are called and how to convert them."""

import re
from collections.abc import Collection
from typing import NamedTuple

_TARS = "webdataset.ShardWriter, then `ifsq data index`"
_FILES = "PNG files in class folders, then `ifsq data pack`"


class _Format(NamedTuple):
    """`names` is a pattern of the names of its files, in lower case."""

    names: str
    what: str
    how: str


_FORMATS = (
    _Format(
        r".*\.mds(\..+)?",
        "shards of MosaicML Streaming (.mds)",
        f"write the samples of streaming.StreamingDataset with {_TARS}",
    ),
    _Format(
        r"chunk-.*\.bin",
        "chunks of litdata (.bin)",
        f"write the samples of litdata.StreamingDataset with {_TARS}",
    ),
    _Format(
        r".*\.tfrecords?(\.gz)?|.*[.-]tfrecords?-.*|.*-\d{5}-of-\d{5}",
        "TFRecord files",
        f"write the examples of tf.data.TFRecordDataset with {_TARS}",
    ),
    _Format(
        r".*\.(array_?record|riegeli|bagz)",
        "record files of Grain (ArrayRecord)",
        f"write the samples of their data source with {_TARS}",
    ),
    _Format(
        r".*\.rec",
        "RecordIO files of MXNet",
        f"write what mxnet.recordio.unpack gives with {_TARS}",
    ),
    _Format(
        r".*\.(lmdb|mdb)",
        "an LMDB database",
        f"write the values that its cursor gives with {_TARS}",
    ),
    _Format(
        r".*\.beton",
        "an FFCV file (.beton)",
        f"write the samples of ffcv.loader.Loader as {_FILES}, or pack what it was made of",
    ),
    _Format(r".*\.(h5|hdf5?|he5)", "an HDF5 file", f"write its arrays (h5py.File) as {_FILES}"),
    _Format(r".*\.(npy|npz)", "NumPy arrays", f"write them (numpy.load) as {_FILES}"),
    _Format(r".*\.mat", "a MATLAB file", f"write its arrays (scipy.io.loadmat) as {_FILES}"),
    _Format(
        r"(data|test)_batch(_\d)?(\.bin)?|.*-idx[13]-ubyte(\.gz)?",
        "files of CIFAR or MNIST",
        f"write their images (torchvision.datasets) as {_FILES}",
    ),
    _Format(r".*\.(pkl|pickle)", "pickled objects", f"write their images as {_FILES}"),
    _Format(r".*\.(pt|pth|safetensors)", "tensors", f"write them as {_FILES}"),
    _Format(
        r"\.?z(array|group|attrs)|zarr\.json",
        "a Zarr store",
        f"write its arrays (zarr.open) as {_FILES}",
    ),
    _Format(
        r".*\.lance",
        "a Lance dataset",
        "write its batches (lance.dataset) as Parquet, then `ifsq data pack`",
    ),
    _Format(r"(?!thumbs\.).*\.(sqlite3?|db|duckdb)", "a database", f"write its images as {_FILES}"),
    _Format(
        r".*\.(sqsh|squashfs|sfs|iso|dmg)",
        "an image of a file system",
        "mount it, then `ifsq data pack` with the folder",
    ),
    _Format(
        r".*\.(arrow|feather)",
        "Arrow files, as the datasets library keeps them",
        "save them with Dataset.to_parquet, then `ifsq data pack`",
    ),
    _Format(
        r".*\.(avro|orc|jsonl|ndjson|csv|tsv)",
        "tables",
        "write images and labels as Parquet, or put the files they name into class folders",
    ),
)
_COMPILED = tuple((re.compile(names), what, how) for names, what, how in _FORMATS)


def name_other_format(names: Collection[str]) -> str:
    """What the files of these names (in lower case) are, with the way to convert them; empty if
    they are nothing that is known here."""
    for pattern, what, how in _COMPILED:
        if any(pattern.fullmatch(name) for name in names):
            return f"{what} cannot be read: {how}"
    return ""
