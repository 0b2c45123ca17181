"""Token datasets as Parquet: every value, its shape in the metadata, files of whole samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.errors import UserError
from data_pipelines.tokens.format import ExtraColumn
from data_pipelines.tokens.parquet import export_parquet
from data_pipelines.tokens.reader import TokenDataset
from tests.support.known_tokens import SPEC, write_dataset

EXTRA = {"means": ExtraColumn("float16", (2, 4, 4)), "scales": ExtraColumn("float32", (3,))}


def test_rows_are_those_of_the_dataset(tmp_path: Path) -> None:
    spec = replace(SPEC, codebook_sizes=(289, 289), extra_columns=EXTRA)
    dataset = TokenDataset.open(write_dataset(tmp_path / "tokens", spec))
    written = export_parquet(dataset, tmp_path / "out", rows_per_file=7)
    names = [path.name for path in written]
    assert names[:2] == ["train-00000-of-00004.parquet", "train-00001-of-00004.parquet"]
    assert names[-1] == "tokens.json"
    table = pq.read_table(tmp_path / "out" / "data")
    ids, views = np.repeat(np.arange(10), 2), np.tile([0, 1], 10)
    batch = dataset.read(ids, views, tuple(EXTRA))
    assert table["sample_id"].to_pylist() == ids.tolist()
    assert table["view"].to_pylist() == views.tolist()
    assert table["flip"].to_pylist() == (views == 1).tolist()
    assert table["label"].to_pylist() == batch.labels.tolist()
    assert table["tokens"].to_pylist() == batch.tokens.reshape(20, 4, 4, 2).tolist()
    for name, values in batch.extra.items():
        assert table[name].to_pylist() == values.tolist()
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["tokens"] == {"shape": [4, 4, 2], "dtype": "int32", "_type": "Array3D"}
    assert list(features) == table.column_names


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    dataset = TokenDataset.open(write_dataset(tmp_path / "tokens"))
    export_parquet(dataset, tmp_path / "out")
    before = (tmp_path / "out" / "tokens.json").read_bytes()
    export_parquet(dataset, tmp_path / "out")
    assert (tmp_path / "out" / "tokens.json").read_bytes() == before
    with pytest.raises(UserError, match="not empty and was not made by"):
        export_parquet(dataset, tmp_path / "tokens" / "shards")
