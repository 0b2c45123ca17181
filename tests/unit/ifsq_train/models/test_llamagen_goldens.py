"""LlamaGen gives what the released one gives, teacher-forced and decoding."""

from pathlib import Path

import pytest
import torch

from ifsq_train.losses.alignment import alignment_loss
from ifsq_train.losses.token_cross_entropy import token_cross_entropy
from ifsq_train.models.llamagen import SIZES, LlamaGen, LlamaGenOutput
from ifsq_train.sampling.autoregressive import SamplingConfig, filtered_probabilities, sample_tokens
from tests.support.goldens import Golden, assert_relative


def build(golden: Golden) -> LlamaGen:
    settings = golden.config["model"]
    vocabulary = settings["vocab_size"]
    model = LlamaGen(
        num_layers=settings["n_layer"],
        num_heads=settings["n_head"],
        dim=settings["dim"],
        codebook_sizes=vocabulary if isinstance(vocabulary, list) else [vocabulary],
        grid=(4, 4),
        num_classes=settings["num_classes"],
        token_dropout=0.0,
        residual_dropout=0.0,
        feed_forward_dropout=0.0,
        factorized_layers=settings.get("factorized_n_layer", 2),
        multiple_of=settings.get("multiple_of", 256),
        projection_dims=settings["z_dims"],
        projection_depth=settings["encoder_depth"],
        projector_width=settings["projector_dim"],
    )
    model.load_state_dict(golden.under("sd."))
    return model.eval()


def released_loss(golden: Golden, output: LlamaGenOutput, tokens: torch.Tensor) -> torch.Tensor:
    targets = golden["repa_target"]
    alignment = alignment_loss(output.projections, [targets])
    assert_relative(alignment, golden["train.proj"])
    for group, logits in enumerate(output.logits):
        own = tokens if tokens.dim() == 2 else tokens[..., group]
        name = "train.ce" if tokens.dim() == 2 else f"train.ce{group}"
        assert_relative(token_cross_entropy([logits], own), golden[name])
    return token_cross_entropy(output.logits, tokens) + 2.0 * alignment


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "llamagen")


@pytest.fixture(scope="module")
def factorized(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "llamagen_factorized")


def test_rotary_table(golden: Golden) -> None:
    assert_relative(build(golden).rope, golden["rope"])


def test_teacher_forced(golden: Golden) -> None:
    output = build(golden)(golden["tokens"], golden["class_ids"], keep_hidden=True)
    for name in ("train", "eval"):
        assert_relative(output.logits[0], golden[f"{name}.logits"])
        assert_relative(output.projections[0], golden[f"{name}.zs"])
    for depth, hidden in enumerate(output.hidden):
        assert_relative(hidden, golden[f"eval.hidden{depth}"])


@pytest.mark.parametrize("pack", ["golden", "factorized"])
def test_loss_and_gradients(pack: str, request: pytest.FixtureRequest) -> None:
    recorded: Golden = request.getfixturevalue(pack)
    model = build(recorded)
    if pack == "golden":
        tokens = recorded["tokens"]
    else:
        tokens = torch.stack([recorded["tokens0"], recorded["tokens1"]], -1)
    output = model(tokens, recorded["class_ids"])
    loss = released_loss(recorded, output, tokens)
    assert_relative(loss, recorded["train.loss"])
    loss.backward()
    named = dict(model.named_parameters())
    for name, expected in recorded.under("grad.").items():
        gradient = named[name].grad
        assert gradient is not None
        assert_relative(gradient, expected)


def test_factorized_teacher_forced(factorized: Golden) -> None:
    tokens = torch.stack([factorized["tokens0"], factorized["tokens1"]], -1)
    output = build(factorized)(tokens, factorized["class_ids"])
    assert_relative(output.projections[0], factorized["train.zs"])
    for group in range(2):
        expected = factorized[f"train.logits{group}"]
        assert_relative(output.logits[group], expected)


GREEDY = {
    "cfg1": SamplingConfig(greedy=True),
    "cfg2": SamplingConfig(greedy=True, cfg_scale=2.0),
    "cfg3_int": SamplingConfig(greedy=True, cfg_scale=3.0, cfg_interval=4),
    "cfg2_t07": SamplingConfig(greedy=True, cfg_scale=2.0, temperature=0.7),
}


@pytest.mark.parametrize("case", GREEDY)
def test_greedy_decoding(golden: Golden, case: str) -> None:
    seen: list[torch.Tensor] = []
    labels = golden["gen.class_ids"]
    tokens = sample_tokens(
        build(golden),
        labels,
        [0] * len(labels),
        GREEDY[case],
        on_logits=lambda _position, _group, logits: seen.append(logits),
    )
    assert torch.equal(tokens, golden[f"gen.{case}.tokens"].long())
    assert_relative(torch.stack(seen, 1), golden[f"gen.{case}.logits"])


@pytest.mark.parametrize("case", ["cfg1", "cfg2"])
def test_greedy_factorized_decoding(factorized: Golden, case: str) -> None:
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    labels = factorized["gen.class_ids"]
    tokens = sample_tokens(
        build(factorized),
        labels,
        [0] * len(labels),
        GREEDY[case],
        on_logits=lambda _position, group, logits: seen[group].append(logits),
    )
    assert torch.equal(tokens, factorized[f"gen.{case}.tokens"])
    for group in range(2):
        expected = factorized[f"gen.{case}.logits{group}"]
        assert_relative(torch.stack(seen[group], 1), expected)


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(5, 1.0, 1.0), (0, 0.8, 1.0), (7, 0.9, 0.6), (0, 1.0, 1.3)]
)
def test_filters(golden: Golden, top_k: int, top_p: float, temperature: float) -> None:
    config = SamplingConfig(top_k=top_k, top_p=top_p, temperature=temperature)
    probabilities = filtered_probabilities(golden["filt.logits"][:, 0], config)
    expected = golden[f"filt.k{top_k}_p{top_p}_t{temperature}"]
    assert_relative(probabilities, expected)


COUNTS = {
    "S": (34_210_560, 85_771_776, 25_612_032, 40_769_024),
    "B": (110_888_448, 214_010_880, 100_769_280, 118_233_344),
    "L": (342_910_976, 480_407_552, 336_234_496, 350_780_160),
    "XL": (774_699_520, 946_570_240, 774_873_600, 783_092_992),
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size: str) -> None:
    variants = [([16384], ()), ([83521], ()), ([289, 289], ()), ([16384], (768,))]
    with torch.device("meta"):
        for (codebooks, projections), expected in zip(variants, COUNTS[size], strict=True):
            model = LlamaGen(
                **SIZES[size],
                codebook_sizes=codebooks,
                grid=(16, 16),
                projection_dims=projections,
            )
            assert sum(p.numel() for p in model.parameters()) == expected
