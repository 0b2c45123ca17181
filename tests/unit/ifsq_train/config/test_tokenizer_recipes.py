"""The shipped tokenizer recipes are the paper's: shapes, bits and parameter counts."""

import math
import re

import pytest
import torch

from ifsq_train.artifacts.networks import build_tokenizer
from ifsq_train.config import TokenizerTaskConfig, TrainConfig
from ifsq_train.config.load import find_recipe, list_recipes, load_recipe
from ifsq_train.models.quantizers import FSQ

NAMES = [name for name, _ in list_recipes() if name.startswith("tokenizer/")]
PARAMETERS = {
    ("f16", "ifsq", 4): 83_324_099,
    ("f16", "ifsq", 8): 83_379_555,
    ("f8", "ifsq", 4): 81_550_531,
    ("f8", "ifsq", 8): 81_605_987,
    ("f16", "ae", 4): 83_324_135,
    ("f8", "ae", 4): 81_550_567,
    ("f16", "vq", 4): 83_389_635,
    ("f16", "vq", 8): 83_510_627,
    ("f8", "vq", 4): 81_616_067,
    ("f8", "vq", 8): 81_737_059,
}


def load(name: str) -> TrainConfig:
    config = load_recipe(name)
    assert isinstance(config, TrainConfig)
    return config


def test_every_tokenizer_of_the_tables_has_a_recipe() -> None:
    wanted = {
        f"tokenizer/f{ratio}-{kind}-d{dim}-{bits}bit"
        for ratio in (8, 16)
        for kind in ("ifsq", "fsq")
        for dim in (4, 8)
        for bits in range(1, 9)
    }
    wanted |= {
        f"tokenizer/f{ratio}-{kind}-d{dim}"
        for ratio in (8, 16)
        for kind in ("ae", "vae", "vq")
        for dim in (4, 8)
    }
    wanted |= {"tokenizer/f8-lfq-14bit", "tokenizer/f16-lfq-14bit"}
    assert set(NAMES) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_what_its_name_says(name: str) -> None:
    task = load(name).task
    assert isinstance(task, TokenizerTaskConfig)
    parts = re.fullmatch(r"tokenizer/(f\d+)-([a-z]+)-(?:d(\d))?-?(?:(\d+)bit)?", name)
    assert parts
    ratio, kind, dim, bits = parts.groups()
    assert task.model.quantizer.kind == kind
    with torch.device("meta"):
        network = build_tokenizer(task.model)
    assert network.downsample_ratio == int(ratio[1:])
    if dim:
        assert network.quantize.num_channels == int(dim)
    if kind in ("ifsq", "fsq"):
        assert isinstance(network.quantize, FSQ)
        assert network.quantize.level_counts == (2 ** int(bits) + 1,) * int(dim)
        assert network.quantize.alpha == (1.6 if kind == "ifsq" else 2.0)
        assert math.prod(network.quantize.codebook_sizes) == (2 ** int(bits) + 1) ** int(dim)
    elif bits:
        assert math.prod(network.quantize.codebook_sizes) == 2 ** int(bits)
    expected = PARAMETERS.get((ratio, "ifsq" if kind == "fsq" else kind, int(dim or 0)))
    if expected:
        assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_how_to_run_it_and_what_to_expect(name: str) -> None:
    header = [line for line in find_recipe(name).read_text().splitlines() if line.startswith("#")]
    for part in ("Command:", "Hardware:", "Expected:"):
        assert any(part in line for line in header), part
    assert f"ifsq train {name}" in "\n".join(header)
