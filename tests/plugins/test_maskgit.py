"""A generator from outside with its own sampler: trains, resumes, is planned and drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import UserError
from ifsq_train.artifacts.token_meaning import spec_of_tokens
from ifsq_train.artifacts.trained import load_generator
from ifsq_train.config import SampleConfig, TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.planning.estimate import estimate
from ifsq_train.precompute.job import run_precompute_local
from ifsq_train.sampling.draw import draw_samples, read_samples
from tests.plugins.runs import assert_resumes, recipe, train
from tests.support.precompute_parts import configure, make_parts

MODEL = {"num_layers": 2, "num_heads": 2, "dim": 32, "num_classes": 3}


@pytest.fixture(scope="module")
def trained(
    idea: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Run folder of a MaskGIT, its recipe, and the parts its tokens were made of."""
    folder = tmp_path_factory.mktemp("maskgit")
    parts = make_parts(folder, levels=5)
    run_precompute_local(configure(parts, folder / "tokens"), device="cpu")
    data = {"kind": "tokens", "url": str(folder / "tokens")}
    values = recipe(folder / "run", data, {"kind": "maskgit", "model": MODEL}, "generator")
    train(values)
    return folder / "run", values, parts


def samples(
    trained: tuple[Path, dict[str, Any], dict[str, Any]], output: Path, **changes: Any
) -> np.ndarray:
    """Images uint8 of two samples of each class."""
    values = {
        "kind": "sample",
        "generator": str(trained[0]),
        "tokenizer": trained[2]["tokenizer"],
        "output": str(output),
        "samples_per_class": 2,
        "cfg_scale": 1.5,
        "sampler": {"kind": "maskgit", "num_rounds": 3},
    }
    config = SampleConfig.model_validate({**values, **changes})
    assert draw_samples(config) == 6
    return read_samples(output).images


def test_a_stopped_run_ends_like_one_that_was_not(
    trained: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    assert_resumes(trained[1], trained[0], tmp_path)


def test_its_checkpoint_says_what_it_speaks(
    trained: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    spec = load_generator(trained[0]).spec
    assert (spec.grid, spec.codebook_sizes, spec.latent_channels) == ((8, 8), (5**4,), 0)


def test_samples_do_not_depend_on_their_batch(
    trained: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    together = samples(trained, tmp_path / "together", batch_size=6)
    apart = samples(trained, tmp_path / "apart", batch_size=2)
    assert together.shape == (6, 16, 16, 3)
    # Convolutions of another batch size may round a pixel to its neighbour.
    assert np.abs(together.astype(int) - apart).max() <= 1
    other = samples(trained, tmp_path / "other", sampler={"kind": "maskgit", "num_rounds": 1})
    assert not np.array_equal(together, other)


def test_what_it_will_need_is_estimated(
    trained: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    from data_pipelines.tokens.reader import TokenDataset

    config = validate_recipe(trained[1], "test")
    assert isinstance(config, TrainConfig)
    spec = spec_of_tokens(TokenDataset.open(trained[1]["data"]["url"]).spec)
    found = estimate(config, workers=1, peak_flops=None, spec=spec)
    network = load_generator(trained[0]).network
    assert found.parameters["generator"] == sum(p.numel() for p in network.parameters())


def test_a_sampler_nobody_knows_is_refused(
    trained: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    values = {"kind": "sample", "generator": "g", "tokenizer": "t", "output": "o"}
    with pytest.raises(UserError, match=r"sampler\.kind: found 'other', allowed 'maskgit'"):
        validate_recipe({**values, "sampler": {"kind": "other"}}, "test")
