"""The `datasets` library loads exported tokens as arrays of their shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.tokens.format import ExtraColumn
from data_pipelines.tokens.parquet import export_parquet
from data_pipelines.tokens.reader import TokenDataset
from tests.support.known_tokens import SPEC, write_dataset

datasets = pytest.importorskip("datasets", reason="datasets is not installed: make test-peers")


def test_datasets_loads_every_value(tmp_path: Path) -> None:
    extra = {"means": ExtraColumn("float16", (2, 4, 4)), "scales": ExtraColumn("float32", (3,))}
    spec = replace(SPEC, extra_columns=extra)
    dataset = TokenDataset.open(write_dataset(tmp_path / "tokens", spec))
    export_parquet(dataset, tmp_path / "out", rows_per_file=8)
    rows = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert rows.features["tokens"].shape == (4, 4, 1)
    found = rows.with_format("numpy")[:]
    ids, views = np.repeat(np.arange(10), 2), np.tile([0, 1], 10)
    batch = dataset.read(ids, views, tuple(extra))
    assert np.array_equal(found["tokens"], batch.tokens.reshape(20, 4, 4, 1))
    assert np.array_equal(found["label"], batch.labels)
    for name, values in batch.extra.items():
        assert np.array_equal(np.asarray(found[name]), values), name
