"""Draws tested as random numbers: joint distributions and independence, with fixed seeds.

Every bound is one that independent uniform draws exceed with a probability below 1e-6; with the
seeds fixed, a test that passes passes always.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from data_pipelines.hashing import hash_u64
from data_pipelines.order.plan import SamplePlan
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.randomness import BatchRandom, derive_seed
from ifsq_train.sampling.autoregressive import SamplingConfig, sample_tokens
from ifsq_train.sampling.drawing import draw

DEVIATIONS = 5.0
"""A normal deviate is beyond that with probability 6e-7."""


def chi_square_limit(freedom: int) -> float:
    """Exceeded with probability below 1e-6 (Wilson and Hilferty's cube of a normal deviate)."""
    spread = 2.0 / (9.0 * freedom)
    return freedom * (1.0 - spread + DEVIATIONS * spread**0.5) ** 3


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """In units of its standard deviation for independent draws."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * a.size**0.5


def uniform_model(codebooks: tuple[int, ...]) -> LlamaGen:
    """Before training all heads are zero: every token of every group is equally likely."""
    shape = {"num_layers": 1, "num_heads": 1, "dim": 8, "grid": (2, 2), "num_classes": 2}
    return LlamaGen(codebook_sizes=codebooks, multiple_of=8, factorized_layers=1, **shape).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """1,500 samples of 4 positions of 3 groups of 4 tokens."""
    model = uniform_model((4, 4, 4))
    labels = torch.zeros(1500, dtype=torch.int64)
    return sample_tokens(model, labels, range(1500), SamplingConfig()).numpy()


def test_groups_of_a_position_are_drawn_independently(drawn: np.ndarray) -> None:
    """Uniform over all pairs: one draw shared by the groups would fill the diagonal only."""
    for first, second in combinations(range(3), 2):
        pairs = drawn[..., first] * 4 + drawn[..., second]
        counts = np.bincount(pairs.ravel(), minlength=16)
        expected = pairs.size / 16
        assert ((counts - expected) ** 2 / expected).sum() < chi_square_limit(15)


def test_positions_and_samples_are_drawn_independently(drawn: np.ndarray) -> None:
    for first, second in combinations(range(4), 2):
        assert abs(correlation(drawn[:, first], drawn[:, second])) < DEVIATIONS
    assert abs(correlation(drawn[:-1], drawn[1:])) < DEVIATIONS


def test_a_factorised_model_samples_its_own_joint_distribution() -> None:
    """Group 1 copies group 0 with probability 0.9: the table of pairs is the product's."""
    model = uniform_model((2, 2))
    torch.manual_seed(0)
    with torch.no_grad():
        model.get_submodule("0_emb").weight.normal_()  # type: ignore[union-attr, operator]
        for head in model.output:  # type: ignore[union-attr]
            head.weight.normal_(std=0.4)
    count = 4000
    labels = torch.zeros(count, dtype=torch.int64)
    tokens = sample_tokens(model, labels, range(count), SamplingConfig())[:, 0]
    expected = torch.zeros(2, 2, dtype=torch.float64)
    with torch.no_grad():
        for first in range(2):
            pair = torch.tensor([[[first, 0]]]).expand(1, 4, 2)
            logits = model(pair, labels[:1]).logits
            share = [part[0, 0].double().softmax(-1) for part in logits]
            expected[first] = share[0][first] * share[1]
    counts = torch.bincount(tokens[:, 0] * 2 + tokens[:, 1], minlength=4).double()
    wanted = expected.flatten() * count
    assert float(((counts - wanted) ** 2 / wanted).sum()) < chi_square_limit(3)
    assert abs(float(expected[0, 0] * expected[1, 1] - expected[0, 1] * expected[1, 0])) > 0.01


def test_draws_follow_the_given_probabilities() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log().expand(40_000, 5)
    uniform = torch.from_numpy(np.random.default_rng(1).random(40_000))
    counts = torch.bincount(draw(logits, uniform, SamplingConfig()), minlength=5).double()
    expected = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).double() * 40_000
    assert float(((counts - expected) ** 2 / expected).sum()) < chi_square_limit(4)


STREAMS = {
    "seed": [BatchRandom(seed, 3, np.arange(500)).normal("noise", (8,)) for seed in (0, 1, 2**32)],
    "step": [BatchRandom(0, step, np.arange(500)).normal("noise", (8,)) for step in (0, 1, 2**32)],
    "stream": [BatchRandom(0, 3, np.arange(500)).normal(name, (8,)) for name in ("a", "b", "ab")],
    "position": [
        BatchRandom(0, 3, np.arange(first, first + 500)).normal("noise", (8,))
        for first in (0, 500, 2**32)
    ],
}


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_step_s_draws_are_independent_over(name: str) -> None:
    """None of them repeats after 2^32, as a key cut to 32 bits would."""
    parts = [part.numpy() for part in STREAMS[name]]
    for first, second in combinations(parts, 2):
        assert abs(correlation(first, second)) < DEVIATIONS
    values = np.concatenate(parts)
    assert abs(values.mean()) * values.size**0.5 < DEVIATIONS
    assert abs(values.var() - 1.0) * (values.size / 2) ** 0.5 < DEVIATIONS


@pytest.mark.parametrize("part", ["seed", "step", "position"])
def test_draws_have_no_period_below_2_to_the_32(part: str) -> None:
    """Every bit of a seed, a step and a position gives other draws."""
    rows: set[bytes] = set()
    values = [0, *(1 << bit for bit in range(40))]
    for value in values:
        given = {"seed": 5, "step": 7, "position": 3} | {part: value}
        random = BatchRandom(given["seed"], given["step"], np.array([given["position"]]))
        rows.add(random.uniform("crop", (4,)).numpy().tobytes())
    assert len(rows) == len(values)


def test_a_sample_s_draws_do_not_depend_on_those_beside_it() -> None:
    whole = BatchRandom(5, 7, np.arange(16)).uniform("crop", (3,))
    for share in (np.arange(16)[3:9], np.array([15]), np.arange(16)[::-1]):
        part = BatchRandom(5, 7, share).uniform("crop", (3,))
        assert torch.equal(part, whole[share.copy()])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_hashes_have_no_period_below_2_to_the_32(place: int) -> None:
    """Every bit of every input matters, the high ones as well."""
    base = [11, 22, 33]
    seen = {int(hash_u64(*base))}
    for bit in range(63):
        changed = list(base)
        changed[place] ^= 1 << bit
        seen.add(int(hash_u64(*changed)))
    assert len(seen) == 64


def test_seeds_of_different_parts_differ() -> None:
    """Also where the parts written one after another are the same text."""
    parts = [(1, 2), (12,), ("1", 2), (1, "2"), ("1\x1f2",), (2, 1), (1, 2, 0), (2**32 + 1, 2)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)


def test_epochs_are_shuffled_independently() -> None:
    plan = SamplePlan("digest", [64] * 8, 16, seed=3)
    epochs = [
        np.concatenate([plan.rank_ids(epoch * 32 + step, 0, 1) for step in range(32)])
        for epoch in range(4)
    ]
    for first, second in pairwise(epochs):
        assert abs(correlation(first, second)) < DEVIATIONS
