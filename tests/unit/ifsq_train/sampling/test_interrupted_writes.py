"""A set of samples, refused at any file: unfinished until `samples.json`, and it goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.storage.open import open_storage
from ifsq_train.config import SampleConfig
from ifsq_train.sampling.files import read_images
from ifsq_train.sampling.job import (
    SAMPLES_JSON,
    SampleJob,
    SamplePart,
    describe_samples,
    publish_part,
    read_facts,
)
from tests.support.disk_record import refused_at_every_change

LABELS = np.array([0, 0, 1, 1, 2])


def draw(output: Path, kind: str, seed: int = 0) -> None:
    """As a job draws, with pictures that are known beforehand."""
    config = SampleConfig.model_validate(
        {"kind": "sample", "generator": "g", "tokenizer": "t", "output": str(output),
         "samples_per_class": 2, "batch_size": 2, "format": kind, "seed": seed, "preview": 4}
    )  # fmt: skip
    job = SampleJob(open_storage(output), describe_samples(config, LABELS, generator="f"), config)
    if job.is_finished():
        return
    for item in job.begin():
        at = item.first_sample + np.arange(item.num_samples)
        pictures = np.broadcast_to((40 * at + seed)[:, None, None, None], (len(at), 4, 4, 3))
        publish_part(job.storage, item, SamplePart(pictures.astype(np.uint8), LABELS[at]))
    job.finish()


def visible(folder: Path) -> dict[str, bytes]:
    storage = open_storage(folder)
    return {name: storage.read(name) for name in storage.list()}


@pytest.mark.parametrize("kind", ["npz", "png", "tar"])
def test_samples_are_unfinished_until_samples_json_and_go_on(tmp_path: Path, kind: str) -> None:
    kinds = ("sync file", "rename", "sync folder") if kind == "npz" else ("rename",)
    jobs = refused_at_every_change(lambda out: draw(out, kind), tmp_path, kinds=kinds)
    for output, renamed in jobs:
        assert (read_facts(open_storage(output)) is not None) == (SAMPLES_JSON in renamed)
        draw(output, kind)
        found, whole = visible(output), visible(tmp_path / "whole")
        # A refusal behind samples.json costs no sample: only parts are left that nobody needs.
        assert {n: d for n, d in found.items() if not n.startswith("parts/")} == whole
        if SAMPLES_JSON not in renamed:
            assert found == whole


def test_the_parts_stay_until_the_set_says_that_it_is_finished(tmp_path: Path) -> None:
    for output, renamed in refused_at_every_change(lambda out: draw(out, "npz"), tmp_path):
        if "samples.npz" in renamed:
            assert len(list((output / "parts").iterdir())) == 3


def test_a_set_begun_with_other_settings_leaves_nothing_of_itself(tmp_path: Path) -> None:
    """Refused at any file while it takes the old set's place, it is not taken for the old."""
    jobs = refused_at_every_change(
        lambda out: draw(out, "npz", seed=1),
        tmp_path,
        start=lambda out: draw(out, "png"),
        kinds=("rename",),
    )
    for output, _ in jobs:
        facts = read_facts(open_storage(output))
        assert facts is None or facts["recipe"]["seed"] == 0
        if facts is not None:
            read_images(open_storage(output), "png", facts["sha256"])
        draw(output, "npz", seed=1)
        assert visible(output) == visible(tmp_path / "whole")
