"""Where training starts, and what only training mode may move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ifsq_train.models.dit import DiT
from ifsq_train.models.plain import VARIABLE
from ifsq_train.models.quantizers import FSQ, VQ


def test_a_new_dit_predicts_nothing_and_its_blocks_do_nothing() -> None:
    """Zero modulations and a zero last layer (Peebles and Xie): training starts from there."""
    model = DiT(num_layers=2, num_heads=2, dim=32, latent_channels=4, grid=(4, 4), num_classes=3)
    x, t, labels = torch.randn(2, 4, 4, 4), torch.tensor([0.2, 0.8]), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.equal(model(x, t, labels).prediction, torch.zeros_like(x))
        tokens = model.x_embedder(x) + model.pos_embed
        condition = model.t_embedder(t) + model.y_embedder(labels)
        for block in model.blocks:
            assert torch.equal(block(tokens, condition, model.feat_rope), tokens)
    zero = [n for n, p in model.named_parameters() if "weight" in n and not p.any()]
    assert zero == [
        "blocks.0.adaLN_modulation.1.weight",
        "blocks.1.adaLN_modulation.1.weight",
        "final_layer.linear.weight",
        "final_layer.adaLN_modulation.1.weight",
    ]


def tracking(kind: str) -> nn.Module:
    if kind == "vq":
        return VQ(8, 3, track_statistics=True)
    return FSQ([5] * 3, track_statistics=True)


@pytest.mark.parametrize("plain", ["0", "1"])
@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_running_moments_move_in_training_only(
    kind: str, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, plain)
    quantizer, x = tracking(kind), torch.randn(4, 3, 6, 6) * 2.0 + 1.0
    first = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(x)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, first[name]), name
    quantizer.train()(x)
    moved = quantizer.state_dict()
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(moved["running_mean"].flatten(), 0.1 * mean)
    torch.testing.assert_close(moved["running_var"].flatten(), 0.9 + 0.1 * var)


@pytest.mark.parametrize("plain", ["0", "1"])
def test_cells_of_equal_width_stay_within_the_levels(
    plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled by L / 2, the outermost latents round to one level too many and are clamped."""
    monkeypatch.setenv(VARIABLE, plain)
    quantizer = FSQ([5, 3], cells="equal_width").eval()
    z = torch.tensor([-50.0, -1.0, 0.0, 1.0, 50.0]).view(1, 1, 1, 5).expand(1, 2, 1, 5)
    output = quantizer(z)
    assert float(output.latents.abs().max()) == 1.0
    digits = quantizer.indices_to_digits(output.indices)[0, 0]
    assert digits[0].tolist() == [0, 0]
    assert digits[-1].tolist() == [4, 2]
    np.testing.assert_array_equal(
        quantizer.indices_to_latents(output.indices).numpy(), output.latents.numpy()
    )
