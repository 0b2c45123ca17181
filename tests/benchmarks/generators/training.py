"""Training steps of LlamaGen and DiT against the released algorithm written plainly.

    python -m tests.benchmarks.generators.training [--only llamagen|dit] [--precision bf16|fp32]
        [--kernels exact|fast] [--layers 4] [--batch 4] [--rounds 3]

Both sides start from the same weights and see the same inputs. The released step holds whole fp32
logits, aligns sample by sample, reads the gradient norm parameter by parameter, lets AdamW and the
average loop over tensors, and in DiT differentiates through the teacher. Ours is the task under the
torch engine, as `ifsq train` runs it, by default or with `cpu_kernels: fast`. bf16 is autocast, as
released.
"""

from __future__ import annotations

import argparse
import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipelines.tokens.latents import LatentStatistics
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    OptimConfig,
    StrategyConfig,
)
from ifsq_train.data.batch import Batch
from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.repa import DinoTeacher
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import Alignment, LatentInputs
from tests.benchmarks.generators.engine_step import engine_step
from tests.benchmarks.generators.measure import head, measure, show
from tests.benchmarks.generators.reference_dit import ReferenceDiT
from tests.benchmarks.generators.reference_llamagen import ReferenceLlamaGen, reference_alignment

VOCABULARY, DIM, HEADS = 17**4, 768, 12
LLAMAGEN = OptimConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, max_grad_norm=1.0)
DIT = OptimConfig(lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, max_grad_norm=None)
Losses = Callable[[], Tensor]


def our_step(
    task: Any, batch: Batch, args: argparse.Namespace, optim: OptimConfig
) -> Callable[[], float]:
    """The loop's step under the torch engine, with `args`' precision and kernels."""
    settings = StrategyConfig(kind="torch", precision=args.precision, cpu_kernels=args.kernels)
    return engine_step(task, batch, optim, settings, torch.device("cpu"))


def released_step(model: nn.Module, loss_of: Losses, optim: OptimConfig) -> Callable[[], float]:
    """Backward, norm by parameter, clipping, AdamW and average tensor by tensor."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
    )
    average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def step() -> float:
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        sum(p.grad.norm().item() ** 2 for p in model.parameters() if p.grad is not None)
        if optim.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        optimizer.step()
        for name, parameter in model.named_parameters():
            average[name].mul_(0.9999).add_(parameter.data, alpha=1 - 0.9999)
        return loss.item()

    return step


def autocast(precision: str) -> AbstractContextManager[object]:
    """As the released training."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def llamagen(args: argparse.Namespace, *, repa: bool) -> None:
    """LlamaGen of base width on 17-level tokens of four channels."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": args.layers, "num_heads": HEADS, "dim": DIM}
    dims = [768] if repa else []
    model = LlamaGen(
        **shape,
        codebook_sizes=[VOCABULARY],
        grid=(16, 16),
        projection_dims=dims,
        projection_depth=2,
    )
    other = ReferenceLlamaGen(**shape, codebook_sizes=[VOCABULARY], grid=(16, 16),
                              num_classes=1000, dropout=0.1, projection_dims=dims,
                              projection_depth=2).train()  # fmt: skip
    other.load_state_dict(model.state_dict())
    tokens, labels = torch.randint(VOCABULARY, (args.batch, 256)), torch.arange(args.batch)
    features = torch.randn(args.batch, 256, 768) if repa else None

    def loss_of() -> Tensor:
        with autocast(args.precision):
            logits, projections = other(tokens.unsqueeze(-1), labels)
            loss = F.cross_entropy(logits[0].flatten(0, 1), tokens.flatten())
            if features is not None:
                loss = loss + 2.0 * reference_alignment(projections, [features])
        return loss

    config = AutoregressiveTaskConfig.model_validate(
        {"kind": "autoregressive", "model": {"size": "custom", **shape}}
    )
    alignment = Alignment(None, 2.0) if repa else None
    task = AutoregressiveTask(config, model, None, alignment)
    batch = Batch(tokens, labels, np.arange(args.batch), features)
    steps: dict[str, Callable[[], object]] = {
        "released": released_step(other, loss_of, LLAMAGEN),
        "ours": our_step(task, batch, args, LLAMAGEN),
    }
    name = f"LlamaGen{'-REPA' if repa else ''}, {args.layers} layers, {args.precision}"
    show(name, measure(steps, args.rounds))


def dit(args: argparse.Namespace, *, repa: bool) -> None:
    """DiT of base width on 16 x 16 latents; with REPA a DINOv2-S teacher of random weights."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": args.layers, "num_heads": HEADS, "dim": DIM}
    build: dict[str, Any] = {"latent_channels": 4, "grid": (16, 16)}
    if repa:
        build |= {"projection_dims": [384], "projection_depth": 2}
    model = DiT(**shape, **build)
    heads = copy.deepcopy(list(model.projectors))
    other = ReferenceDiT(**shape, channels=4, side=16, projectors=heads, projection_depth=2).train()
    other.load_state_dict(model.state_dict())
    teacher = DinoTeacher(num_layers=12, dim=384, num_heads=6, grid=(16, 16))
    latents, labels = torch.randn(args.batch, 4, 16, 16), torch.arange(args.batch)
    images = torch.rand(args.batch, 3, 256, 256) * 2 - 1 if repa else None

    def loss_of() -> Tensor:
        noise, t = torch.randn_like(latents), torch.sigmoid(torch.randn(args.batch))
        wide = t.view(-1, 1, 1, 1)
        target = latents - noise
        with autocast(args.precision):
            velocity, projections = other(wide * latents + (1 - wide) * noise, t, labels)
            squared = ((velocity - target) ** 2).mean(dim=(1, 2, 3))
            cosine = (1 - F.cosine_similarity(velocity, target, dim=1)).mean(dim=(1, 2))
            loss = squared.mean() + cosine.mean()
            if images is not None:
                # As released: the teacher's parameters take gradients, and nothing stops them.
                features = inspect.unwrap(DinoTeacher.forward)(teacher, images)
                loss = loss + 0.5 * reference_alignment(projections, [features])
        return loss

    config = DiffusionTaskConfig.model_validate(
        {"kind": "diffusion", "model": {"size": "custom", **shape}}
    )
    unscaled = LatentStatistics((0.0,) * 4, (1.0,) * 4, 0)
    frozen = DinoTeacher(num_layers=12, dim=384, num_heads=6, grid=(16, 16)).requires_grad_(False)
    alignment = Alignment(frozen, 0.5) if repa else None
    task = DiffusionTask(config, model, LatentInputs(unscaled, (16, 16)), alignment)
    batch = Batch(latents, labels, np.arange(args.batch), images=images)
    steps: dict[str, Callable[[], object]] = {
        "released": released_step(other, loss_of, DIT),
        "ours": our_step(task, batch, args, DIT),
    }
    name = f"DiT{'-REPA' if repa else ''}, {args.layers} layers, {args.precision}"
    show(name, measure(steps, args.rounds))


def main() -> None:
    """Print medians and ratios."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", choices=["llamagen", "dit"])
    options.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    options.add_argument("--kernels", choices=["exact", "fast"], default="exact")
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    head()
    for name, run in {"llamagen": llamagen, "dit": dit}.items():
        if args.only in (None, name):
            run(args, repa=False)
            run(args, repa=True)


if __name__ == "__main__":
    main()
