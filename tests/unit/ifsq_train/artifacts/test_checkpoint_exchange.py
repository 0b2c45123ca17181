"""Released checkpoints come in, weights go out, and `ifsq plan` adds up."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.errors import UserError
from ifsq_train.artifacts.exchange import export_weights, import_released, released_spec
from ifsq_train.artifacts.networks import build_dit, build_llamagen, build_tokenizer
from ifsq_train.artifacts.trained import load_generator, load_tokenizer
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.planning.estimate import communication_bytes, estimate, state_bytes
from tests.support.written_runs import recipe

GIB = 2**30


def tokenizer_recipe(**model: Any) -> Any:
    network = {"channel_multipliers": [1, 2], "base_channels": 8, "norm_groups": 4} | model
    task = {
        "kind": "tokenizer",
        "model": {"quantizer": {"kind": "ifsq", "levels": [5, 5, 5]}, **network},
        "adversarial": None,
    }
    view = {"kind": "raw", "image_size": 16}
    return recipe(task, {"kind": "images", "view": view}, "autoencoder")


SMALL = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 32, "num_classes": 3}


@pytest.fixture
def released_tokenizer(tmp_path: Path) -> tuple[Path, Any]:
    torch.manual_seed(0)
    config = tokenizer_recipe()
    live, average = build_tokenizer(config.task.model), build_tokenizer(config.task.model)
    content = {
        "current_step": 7,
        "state_dict": {"gen_model": live.state_dict(), "dics_model": {}},
        "ema_state_dict": {f"module.{k}": v for k, v in average.state_dict().items()},
    }
    path = tmp_path / "checkpoint-7.ckpt"
    torch.save(content, path)
    import_released(path, tmp_path / "tokenizer", config)
    return tmp_path / "tokenizer", (live, average)


def test_a_released_tokenizer_comes_in_and_its_weights_go_out(
    tmp_path: Path, released_tokenizer: tuple[Path, Any]
) -> None:
    folder, (live, average) = released_tokenizer
    network = load_tokenizer(folder).network
    for name, value in average.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
    export_weights(folder, tmp_path / "out")
    for stem, network in (("autoencoder", live), ("autoencoder-ema", average)):
        exported = load_file(tmp_path / "out" / f"{stem}.safetensors")
        assert exported.keys() == network.state_dict().keys()
        for name, value in network.state_dict().items():
            assert torch.equal(exported[name], value)


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_a_released_generator_comes_in(
    tmp_path: Path, released_tokenizer: tuple[Path, Any], kind: str
) -> None:
    config = recipe({"kind": kind, "model": SMALL}, {"kind": "tokens"}, "generator")
    torch.manual_seed(1)
    if kind == "autoregressive":
        model: Any = build_llamagen(config.task.model, (125,), (4, 4))
    else:
        model = build_dit(config.task.model, 3, (4, 4))
    prefix = "" if kind == "autoregressive" else "module."
    content = {
        "model": {f"{prefix}{k}": torch.zeros_like(v) for k, v in model.state_dict().items()},
        "ema": model.state_dict(),
        "opt": {},
    }
    torch.save(content, tmp_path / "0000001.pt")
    spec = released_spec(str(released_tokenizer[0]), (4, 4), latent_multiplier=0.5)
    import_released(tmp_path / "0000001.pt", tmp_path / "generator", config, spec)
    trained = load_generator(tmp_path / "generator")
    for name, value in model.state_dict().items():
        assert torch.equal(trained.network.state_dict()[name], value)
    assert trained.spec.tokenizer_fingerprint == load_tokenizer(released_tokenizer[0]).fingerprint
    if kind == "diffusion":
        assert trained.scaling is not None
        assert trained.scaling.std == (2.0, 2.0, 2.0)


def test_a_released_dits_latents_have_statistics_per_channel(
    released_tokenizer: tuple[Path, Any],
) -> None:
    folder = str(released_tokenizer[0])
    spec = released_spec(folder, (4, 4), 0.5, (0.1, 0.2, -0.3), (1.0, 2.0, 4.0))
    assert spec.latent_mean == (0.1, 0.2, -0.3)
    assert spec.latent_std == (2.0, 4.0, 8.0)
    with pytest.raises(UserError, match="--latent-mean has 2 numbers; the tokenizer has 3"):
        released_spec(folder, (4, 4), 1.0, (0.1, 0.2))
    with pytest.raises(UserError, match="above 0"):
        released_spec(folder, (4, 4), 1.0, None, (1.0, 0.0, 1.0))
    with pytest.raises(UserError, match="finite number"):
        released_spec(folder, (4, 4), 1.0, (0.0, float("nan"), 0.0))


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (eval, ("1/0",))


def test_a_file_with_code_in_it_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(UserError, match="not a torch file of plain tensors"):
        import_released(path, tmp_path / "out", tokenizer_recipe())
    torch.save({"state_dict": {"gen_model": Evil()}}, path)
    with pytest.raises(UserError, match="not a torch file of plain tensors"):
        import_released(path, tmp_path / "out", tokenizer_recipe())


def test_the_plan_of_the_papers_tokenizer() -> None:
    """83,324,099 parameters (PARITY 2); state by the formulas of docs/engine.md."""
    config = tokenizer_recipe(
        channel_multipliers=[1, 1, 2, 4, 4],
        base_channels=128,
        norm_groups=32,
        quantizer={"kind": "ifsq", "levels": [17] * 4},
    )
    found = estimate(config, workers=8, peak_flops=1e15, efficiency=0.5)
    total = found.parameters["autoencoder"]
    assert total == 83_324_099
    assert found.state_bytes[0] == pytest.approx(4 * total * (4 + 1 / 8))
    assert found.state_bytes[3] == pytest.approx(4 * total * 6 / 8)
    seconds = 100 * 64 * found.flops_per_sample / (8 * 1e15 * 0.5)
    assert found.days == pytest.approx(seconds / 86_400)
    assert (found.micro_batch_size, found.micro_batches) == (8, 1)


def test_the_flops_of_a_transformer_are_six_per_weight_and_token() -> None:
    model = {"size": "custom", "num_layers": 4, "num_heads": 4, "dim": 256, "num_classes": 10}
    config = recipe({"kind": "autoregressive", "model": model}, {"kind": "tokens"}, "generator")
    spec = GeneratorSpec((8, 8), (512,))
    found = estimate(config, workers=2, peak_flops=None, spec=spec)
    # Embeddings are looked up, not multiplied; attention over 64 tokens adds a little.
    weights = found.parameters["generator"] - (512 + 11) * 256
    assert found.flops_per_sample == pytest.approx(6 * weights * 64, rel=0.06)
    assert found.days is None
    with pytest.raises(UserError, match="give --grid"):
        estimate(config, workers=2, peak_flops=None)


def test_communication_counts_what_rings_send() -> None:
    parameters, workers = 1000, 4
    one = 4 * parameters * 3 / 4
    sent = [communication_bytes(parameters, stage, workers, 2) for stage in range(4)]
    assert sent == [2 * one, 2 * one, 3 * one, 4 * one]
    alone = [communication_bytes(parameters, stage, 1, 2) for stage in range(4)]
    assert alone == [0, 0, 0, 0]
    assert state_bytes(parameters, 0, 0, 1) == 16 * parameters
