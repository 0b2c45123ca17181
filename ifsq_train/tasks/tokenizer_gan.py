"""Train an image tokenizer: reconstruction, perceptual and adversarial terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ifsq_train.config import AdversarialConfig, TokenizerTaskConfig
from ifsq_train.config.tasks import AUTOENCODER, DISCRIMINATOR
from ifsq_train.data.batch import Batch
from ifsq_train.distributed.collectives import mean_over_ranks
from ifsq_train.losses.adversarial import (
    adaptive_weight,
    conv_weight_gradient,
    discriminator_loss,
    generator_loss,
)
from ifsq_train.losses.reconstruction import pixel_loss
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.inference import channels_last
from ifsq_train.tasks.base import LossOutput, StepInfo


class TokenizerTask:
    """Autoencoder against PatchGAN discriminator (paper section 4; released train_ddp.py).

    Args:
        config: the task's part of the recipe.
        autoencoder: a ``models.autoencoder.Tokenizer``.
        discriminator: None trains on reconstruction alone.
        perceptual: frozen LPIPS network, or None to leave the term out.
    """

    def __init__(
        self,
        config: TokenizerTaskConfig,
        autoencoder: Tokenizer,
        discriminator: nn.Module | None,
        perceptual: nn.Module | None,
    ) -> None:
        assert (config.adversarial is None) == (discriminator is None)
        self._config = config
        self._autoencoder = autoencoder
        self._discriminator = discriminator
        self._perceptual = perceptual

    def modules(self) -> dict[str, nn.Module]:
        """Autoencoder and, if adversarial, discriminator."""
        if self._discriminator is None:
            return {AUTOENCODER: self._autoencoder}
        return {AUTOENCODER: self._autoencoder, DISCRIMINATOR: self._discriminator}

    def auxiliary(self) -> dict[str, nn.Module]:
        """The perceptual network, if there is one."""
        return {} if self._perceptual is None else {"perceptual": self._perceptual}

    def describe(self) -> dict[str, Any]:
        """Nothing: the recipe says it all."""
        return {}

    def averaged(self) -> tuple[str, ...]:
        """The autoencoder's average is what encodes and decodes afterwards."""
        return (AUTOENCODER,)

    def updates(self, step: int) -> tuple[str, ...]:
        """Released schedule: odd steps from start_step on train the discriminator only."""
        adversarial = self._config.adversarial
        if adversarial is None or step < adversarial.start_step:
            return (AUTOENCODER,)
        if adversarial.schedule == "both":
            return (AUTOENCODER, DISCRIMINATOR)
        return (DISCRIMINATOR,) if step % 2 == 1 else (AUTOENCODER,)

    def loss(
        self, update: str, models: Mapping[str, nn.Module], batch: Batch, info: StepInfo
    ) -> LossOutput:
        """Loss of the network that `update` names, on images [B, C, H, W] in [-1, 1]."""
        if update == DISCRIMINATOR:
            return self._discriminator_loss(models, batch.inputs, info)
        return self._autoencoder_loss(models, batch.inputs, info)

    def _autoencoder_loss(
        self, models: Mapping[str, nn.Module], images: Tensor, info: StepInfo
    ) -> LossOutput:
        """Split backward: differentiate the losses by the reconstruction, then the network once.

        The adaptive weight needs two gradients of the last layer. Taking them through the
        engine raises under ZeRO, and costs two more backward passes; here they come from the
        gradients with respect to the reconstruction and that layer's input.
        """
        images = _in_kernel_layout(self._autoencoder.seen(images))
        self._autoencoder.train()
        self._autoencoder.quantize.measure_use = info.logged
        last_layer = self._autoencoder.decoder.conv_out
        with _captured_input(last_layer) as captured, info.strategy.autocast():
            reconstruction, quantized = models[AUTOENCODER](images)
        reconstruction = reconstruction.float()
        leaf = reconstruction.detach().requires_grad_()
        nll, metrics = self._reconstruction_loss(images, leaf, info)
        (gradient,) = torch.autograd.grad(nll, leaf)
        adversarial = self._config.adversarial
        if adversarial is not None and info.step >= adversarial.start_step:
            gradient = self._add_adversarial(
                models[DISCRIMINATOR], leaf, gradient, (last_layer, captured[0]), metrics, info
            )
        surrogate, total = (reconstruction * gradient).sum(), nll.detach()
        weight = self._config.codebook_weight
        for name, value in quantized.losses.items():
            weighted = weight * self._autoencoder.quantize.loss_factor(name, info.step) * value
            surrogate, total = surrogate + weighted, total + weighted.detach()
            metrics[name] = value.detach()
        metrics["loss"] = total
        metrics.update({name: value.detach() for name, value in quantized.stats.items()})
        return LossOutput(surrogate, metrics)

    def _reconstruction_loss(
        self, images: Tensor, leaf: Tensor, info: StepInfo
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixel = pixel_loss(leaf, images, self._config.pixel_loss)
        metrics = {"pixel": pixel.detach()}
        weight = self._config.perceptual.weight
        if self._perceptual is None or weight == 0:
            return pixel, metrics
        with info.strategy.autocast():
            perceptual = self._perceptual(leaf, images).float().mean()
        metrics["perceptual"] = perceptual.detach()
        return pixel + weight * perceptual, metrics

    def _add_adversarial(
        self,
        discriminator: nn.Module,
        leaf: Tensor,
        nll_gradient: Tensor,
        last_layer: tuple[nn.Module, Tensor],
        metrics: dict[str, Tensor],
        info: StepInfo,
    ) -> Tensor:
        """Gradient with respect to the reconstruction, adversarial term included."""
        config = self._config.adversarial
        assert isinstance(config, AdversarialConfig)
        with info.strategy.autocast():
            logits = discriminator(leaf)
        loss = generator_loss(logits.float())
        # Weighted while it passes through batch norms that workers share, as their losses are.
        (adversarial_gradient,) = torch.autograd.grad(loss * info.share, leaf)
        adversarial_gradient = adversarial_gradient / (info.share or 1.0)
        layer, layer_input = last_layer
        # Over all ranks, so that the weight does not depend on how the batch is shared out.
        scale = info.share * info.num_micro_batches
        weights = mean_over_ranks(
            scale
            * torch.stack(
                [
                    conv_weight_gradient(layer, layer_input, gradient)
                    for gradient in (nll_gradient, adversarial_gradient)
                ]
            )
        )
        weight = config.weight * adaptive_weight(
            weights[0], weights[1], maximum=config.adaptive_max
        )
        metrics["adversarial"] = loss.detach()
        metrics["adaptive_weight"] = weight
        return nll_gradient + weight * adversarial_gradient

    def _discriminator_loss(
        self, models: Mapping[str, nn.Module], images: Tensor, info: StepInfo
    ) -> LossOutput:
        config = self._config.adversarial
        assert isinstance(config, AdversarialConfig)
        images = _in_kernel_layout(images)
        # Eval: the tokenizer's running statistics do not move in a discriminator step.
        self._autoencoder.eval()
        with info.strategy.autocast():
            with torch.no_grad():
                reconstruction, _ = models[AUTOENCODER](images)
            # Two passes: the batch norms must see real and generated images apart.
            real = models[DISCRIMINATOR](images)
            fake = models[DISCRIMINATOR](reconstruction.to(images.dtype))
        loss = discriminator_loss(real.float(), fake.float(), config.loss)
        metrics = {
            "discriminator": loss.detach(),
            "logits_real": real.detach().float().mean(),
            "logits_fake": fake.detach().float().mean(),
        }
        return LossOutput(loss, metrics)


def _in_kernel_layout(images: Tensor) -> Tensor:
    """Channels last on a GPU. Convolutions follow, and norms where the blocks are compiled
    (`ImageNorm`); torch's own norm would give channels first again."""
    return channels_last(images) if images.is_cuda else images


@contextmanager
def _captured_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The detached input of the layer's next call, as the only entry of the list."""
    captured: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.append(inputs[0].detach())

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()
