"""A token dataset as Parquet files that the `datasets` library loads.

    data/train-00000-of-00002.parquet   rows in the order of samples, a sample's views together
    tokens.json                         what the tokens mean: tokenizer, quantizer, grid, view
    README.md                           how to load them

Columns: ``sample_id`` int64, ``label`` int64 (-1 where there is none), ``view`` int32, ``flip``
bool, ``tokens`` int32 or int64 [h, w, G] and every further column that is stored, such as latents
and teacher features. The files' metadata names the features, so that arrays come back as arrays.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.open import open_storage
from data_pipelines.storage.outputs import Writer, claim
from data_pipelines.tokens.format import TOKENS_JSON, TokenSpec
from data_pipelines.tokens.reader import TokenDataset

EXPORTER = Writer("ifsq export --layout parquet", ("data/*.parquet", TOKENS_JSON, "README.md"))
_BATCH = 1024
_ROWS_PER_FILE = 1 << 18
_MOST_DIMENSIONS = 5
"""Of arrays that `datasets` knows; they have at least two."""


def export_parquet(
    dataset: TokenDataset,
    output: Path,
    *,
    rows_per_file: int = _ROWS_PER_FILE,
    overwrite: bool = False,
) -> list[Path]:
    """Write a token dataset as Parquet.

    Args:
        dataset: the tokens.
        output: folder to write.
        rows_per_file: about so many; a sample's views stay together.
        overwrite: remove what was exported to the folder before.

    Returns:
        The files; tokens.json is written last.

    Raises:
        UserError: the folder holds something else.
    """
    finished = (output / TOKENS_JSON).is_file()
    job = {"tokens": dataset.digest}
    claim(open_storage(output), EXPORTER, job, finished=finished, overwrite=overwrite)
    (output / "data").mkdir(parents=True, exist_ok=True)
    schema = _schema(dataset.spec)
    samples_per_file = max(1, rows_per_file // dataset.num_views)
    count = -(-dataset.num_samples // samples_per_file)
    written = []
    for number in range(count):
        path = output / "data" / f"train-{number:05d}-of-{count:05d}.parquet"
        first = number * samples_per_file
        last = min(first + samples_per_file, dataset.num_samples)
        write_atomically(path, _file(dataset, schema, first, last))
        written.append(path)
    write_atomically(output / "README.md", _card(dataset).encode())
    text = json.dumps({"digest": dataset.digest, "spec": dataset.spec.to_dict()}, indent=1)
    write_atomically(output / TOKENS_JSON, (text + "\n").encode())
    return [*written, output / "README.md", output / TOKENS_JSON]


def _file(dataset: TokenDataset, schema: pa.Schema, first: int, last: int) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for begin in range(first, last, _BATCH):
            writer.write_batch(_rows(dataset, schema, begin, min(begin + _BATCH, last)))
    return buffer.getvalue()


def _rows(dataset: TokenDataset, schema: pa.Schema, first: int, last: int) -> pa.RecordBatch:
    spec, views = dataset.spec, dataset.num_views
    stored = [dataset.rows_of(sample) for sample in range(first, last)]
    columns: dict[str, NDArray[Any]] = {
        "sample_id": np.repeat(np.arange(first, last), views),
        "label": np.concatenate([rows.labels for rows in stored]),
        "view": np.concatenate([rows.views for rows in stored]),
        "flip": np.concatenate([rows.flips for rows in stored]),
    }
    if spec.has_tokens:
        tokens = np.concatenate([rows.tokens for rows in stored])
        columns["tokens"] = tokens.reshape(len(tokens), *spec.grid, -1)
    for name in spec.extra_columns:
        columns[name] = np.concatenate([rows.extra[name] for rows in stored])
    return pa.record_batch(
        [_array(columns[field.name], field.type) for field in schema], schema=schema
    )


def _array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Nested lists of the shape of `values`; of one dimension less at each level."""
    while pa.types.is_list(kind):
        kind = kind.value_type
    array = pa.array(np.ascontiguousarray(values).reshape(-1).astype(kind.to_pandas_dtype()))
    shape = values.shape
    for at in range(len(shape) - 1, 0, -1):
        lists = int(np.prod(shape[:at], dtype=np.int64))
        offsets = np.arange(lists + 1, dtype=np.int32) * shape[at]
        array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array


def _schema(spec: TokenSpec) -> pa.Schema:
    columns = list(_columns(spec))
    features = {name: _feature(dtype, shape) for name, dtype, shape in columns}
    fields = [_field(name, dtype, shape) for name, dtype, shape in columns]
    described = json.dumps({"info": {"features": features}})
    return pa.schema(fields, metadata={"huggingface": described})


def _columns(spec: TokenSpec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of a row's values."""
    yield from (("sample_id", "int64", ()), ("label", "int64", ()))
    yield from (("view", "int32", ()), ("flip", "bool", ()))
    if spec.has_tokens:
        dtype = "int32" if max(spec.codebook_sizes) <= 1 << 31 else "int64"
        yield "tokens", dtype, (*spec.grid, len(spec.codebook_sizes))
    for name, column in spec.extra_columns.items():
        if len(column.shape) > _MOST_DIMENSIONS:
            raise UserError(f"column {name} has shape {column.shape}; 5 dimensions can be exported")
        yield name, column.dtype, tuple(column.shape)


def _nested(dtype: str, dimensions: int) -> pa.DataType:
    kind: pa.DataType = pa.from_numpy_dtype(np.dtype(dtype))
    for _ in range(dimensions):
        kind = pa.list_(kind)
    return kind


def _field(name: str, dtype: str, shape: tuple[int, ...]) -> pa.Field:
    """A column; marked as the extension type that `datasets` registers for arrays, which readers
    that do not know it see as lists."""
    field = pa.field(name, _nested(dtype, len(shape)))
    if len(shape) < 2:
        return field
    type_name = f"datasets.features.features.Array{len(shape)}DExtensionType"
    marks = {"ARROW:extension:name": type_name}
    return field.with_metadata(
        {**marks, "ARROW:extension:metadata": json.dumps([list(shape), dtype])}
    )


def _feature(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """A feature as `datasets` writes it into the files' metadata."""
    if not shape:
        return {"dtype": dtype, "_type": "Value"}
    if len(shape) == 1:
        return {"feature": {"dtype": dtype, "_type": "Value"}, "length": -1, "_type": "Sequence"}
    return {"shape": list(shape), "dtype": dtype, "_type": f"Array{len(shape)}D"}


def _card(dataset: TokenDataset) -> str:
    spec = dataset.spec
    height, width = spec.grid
    lines = [
        "---",
        "license: unknown",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - {split: train, path: data/train-*}",
        "---",
        "",
        f"Image tokens on a grid of {height} x {width}: {dataset.num_samples:,} images,"
        f" {dataset.num_views} views of each, made with `ifsq-train`.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'rows = load_dataset("path/to/this/folder", split="train").with_format("torch")',
        "```",
        "",
        "`tokens.json` says what they mean: tokenizer (fingerprint"
        f" `{spec.tokenizer_fingerprint}`), quantizer `{dict(spec.quantizer)}`, view"
        f" `{dict(spec.view)}`. Set the licence above before you publish them.",
    ]
    return "\n".join(lines) + "\n"
