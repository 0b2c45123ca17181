"""DeepSpeed engines at ZeRO stage 0-3, one per network; the only file that imports deepspeed.

Facts this file relies on, checked by tests/distributed on every run:
- The first `initialize` on a CPU machine would compile C++ kernels (a minute, or a silent
  hang on a stale lock file); no kernel is needed here, so run-time builds are switched off.
- `gradient_clipping` is always set: DeepSpeed's default is 1.0, not off.
- A second engine must not be called inside the step of the first: it raises or changes the
  numbers, depending on the stage. `updating` therefore hands the others out bare and frozen.
- Fragments read private attributes of the ZeRO optimizers; the version is pinned.
"""

from __future__ import annotations

import collections
import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ifsq_train.checkpoint.format import MASTER
from ifsq_train.config import OptimConfig, StrategyConfig
from ifsq_train.config.train import BUCKET_ELEMENTS
from ifsq_train.distributed.collectives import backend_of
from ifsq_train.distributed.context import RunContext
from ifsq_train.strategy.base import StepStats
from ifsq_train.strategy.fragments import Fragment, moments, split_fragments, whole_fragments
from ifsq_train.strategy.optimizers import build_optimizer, create_state
from ifsq_train.strategy.shell import EngineShell


def _import_deepspeed(device: str) -> Any:
    """DeepSpeed for a kind of device, with run-time kernel builds off and its chatter quiet."""
    # Its own logger prints at import time; the loop's log says what matters.
    os.environ.setdefault("DS_ACCELERATOR", device)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    operators: Any = deepspeed.ops
    operators.__compatible_ops__ = collections.defaultdict(bool)
    return deepspeed


def zero_options(stage: int, device: str) -> dict[str, Any]:
    """DeepSpeed's `zero_optimization` for a stage on a kind of device.

    On GPUs stages 1 and 2 send each gradient only to the worker that owns it, while the backward
    pass goes on, in buckets small enough for that. On CPUs DeepSpeed's defaults stay: gloo adds in
    another order for another kind of collective, and recorded runs have those bits.
    """
    options: dict[str, Any] = {"stage": stage}
    if device == "cuda":
        options |= {"overlap_comm": True, "reduce_bucket_size": BUCKET_ELEMENTS}
        if stage in (1, 2):
            options |= {"reduce_scatter": True, "use_multi_rank_bucket_allreduce": False}
    return options


class DeepSpeedStrategy(EngineShell):
    """ZeRO data parallelism; gradients in fp32, bf16 by autocast over fp32 parameters."""

    def __init__(self, config: StrategyConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self._deepspeed = _import_deepspeed(context.device.type)
        self._engines: dict[str, Any] = {}

    def prepare(
        self, modules: Mapping[str, nn.Module], optim: Mapping[str, OptimConfig], total_steps: int
    ) -> None:
        """One engine per network."""
        self._optim, self._total_steps = optim, total_steps
        backend = backend_of(self._context.device)
        if not dist.is_initialized() and self._context.world_size == 1:
            # A run in this process alone: no address to meet at is needed.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        # DeepSpeed refuses to start without it, also where nothing was launched.
        os.environ.setdefault("LOCAL_RANK", str(self._context.local_rank))
        self._deepspeed.init_distributed(
            dist_backend=backend,
            auto_mpi_discovery=False,
            verbose=False,
        )
        for name, module in modules.items():
            module.to(self._context.device)
            engine, *_ = self._deepspeed.initialize(
                model=module,
                optimizer=build_optimizer(module, optim[name]),
                config=self._engine_config(optim[name]),
                dist_init_required=False,
            )
            self._bare[name], self._engines[name], self._steps[name] = module, engine, 0
            self._create_state(name)

    def _engine_config(self, optim: OptimConfig) -> dict[str, Any]:
        zero = zero_options(self._config.zero_stage, self._context.device.type)
        if self._config.offload_optimizer:
            pinned = self._context.device.type == "cuda"
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
        config: dict[str, Any] = {
            # The loop weighs and splits batches itself, so the engine sees single micro-batches.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": optim.max_grad_norm or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**12,
        }
        if self._config.communication == "bf16":
            config["communication_data_type"] = "bf16"
        if self._config.precision == "bf16":
            config["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            }
        return config

    def _for_update(self, name: str, *, last_micro_batch: bool) -> nn.Module:
        engine = self._engines[name]
        engine.set_gradient_accumulation_boundary(last_micro_batch)
        return engine

    def backward(self, name: str, loss: Tensor) -> None:
        """Backward pass through the engine, which scales and reduces the gradients."""
        self._engines[name].backward(loss)

    def step(self, name: str) -> StepStats:
        """Clip, update and zero the gradients; what happened."""
        engine = self._engines[name]
        lr = self._set_lr(name, engine.optimizer)
        if self._stage(name) == 0:
            norm = self._stage_zero_norm(name)
            applied = math.isfinite(norm)
            if applied:
                engine.step()
            else:
                engine.optimizer.zero_grad(set_to_none=True)
        else:
            engine.step()
            # These stages leave out an update whose gradient norm is not finite by themselves.
            norm, applied = float(engine.get_global_grad_norm()), not engine.optimizer.overflow
        self._steps[name] += int(applied)
        return StepStats(norm, lr, applied)

    def _stage_zero_norm(self, name: str) -> float:
        """Stage 0 keeps whole gradients and reports no norm, so it is taken here."""
        gradients = [p.grad for p in self._bare[name].parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def _stage(self, name: str) -> int:
        return int(self._engines[name].zero_optimization_stage())

    def owned_fragments(self, name: str) -> list[Fragment]:
        """What ZeRO put on this rank; at stage 0 the r-th piece of every parameter."""
        if self._stage(name) == 0:
            whole = self.loadable_fragments(name)
            return split_fragments(whole, self._context.rank, self._context.world_size)
        return self.loadable_fragments(name)

    def loadable_fragments(self, name: str) -> list[Fragment]:
        """The partition of this rank; at stage 0 every parameter whole."""
        stage = self._stage(name)
        module, optimizer = self._bare[name], self._engines[name].optimizer
        if stage == 0:
            return whole_fragments(module, _base_optimizer(optimizer))
        collect = self._stage3_fragments if stage == 3 else _linked_fragments
        return collect(module, optimizer)

    def _stage3_fragments(self, module: nn.Module, zero: Any) -> list[Fragment]:
        pieces = []
        for key, parameter in _zero3_parameters(module):
            shape = tuple(parameter.ds_shape)
            part = parameter.ds_tensor.ds_numel
            start = self._context.rank * part
            length = min(part, parameter.ds_numel - start)
            if length <= 0:
                continue
            group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
            flat = zero.fp32_partitioned_groups_flat[group]
            state = zero.optimizer.state[flat]
            sources = {MASTER: flat.detach(), **moments(state)}
            states = {key: value.narrow(0, offset, length) for key, value in sources.items()}
            pieces.append(Fragment(key, shape, start, states))
        return pieces

    def finish_loading(self, name: str, optimizer_steps: int) -> None:
        """Push the fp32 masters into the weights the forward pass reads; set the counters."""
        self._steps[name] = optimizer_steps
        zero = self._engines[name].optimizer
        for state in _base_optimizer(zero).state.values():
            if "step" in state:
                state["step"].fill_(optimizer_steps)
        stage = self._stage(name)
        if stage in (1, 2):
            self._publish_partitions(zero)
        elif stage == 3:
            for _, parameter in _zero3_parameters(self._bare[name]):
                group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
                master = zero.fp32_partitioned_groups_flat[group].detach().narrow(0, offset, size)
                parameter.ds_tensor.data.view(-1)[:size].copy_(master)

    def _publish_partitions(self, zero: Any) -> None:
        """Stages 1 and 2: all ranks gather each other's partitions into the full weights."""
        for index, masters in enumerate(zero.single_partition_of_fp32_groups):
            partitions = zero.parallel_partitioned_bit16_groups[index]
            partitions[self._context.rank].data.copy_(masters.data)
            if self._context.world_size > 1:
                own = partitions[self._context.rank].data.clone()
                gathered = [torch.empty_like(own) for _ in partitions]
                dist.all_gather(gathered, own)
                for target, values in zip(partitions, gathered, strict=True):
                    target.data.copy_(values)

    def _create_state(self, name: str) -> None:
        """Give Adam its moments before the first step, so that they can be loaded into."""
        zero = self._engines[name].optimizer
        base = _base_optimizer(zero)
        tensors = [tensor for group in base.param_groups for tensor in group["params"]]
        if self._stage(name) == 3:
            # Stage 3 fills the optimizer's groups only while it steps.
            tensors = zero.fp32_partitioned_groups_flat
        create_state(base, tensors)

    def describe(self) -> dict[str, object]:
        """Stage and world size as the engines report them."""
        stages = {self._stage(name) for name in self._engines}
        worlds = {int(engine.dp_world_size) for engine in self._engines.values()}
        assert (len(stages), len(worlds)) == (1, 1)
        return {
            "strategy": "deepspeed",
            "zero_stage": stages.pop(),
            "world_size": worlds.pop(),
            "engine_version": self._deepspeed.__version__,
        }


def _zero3_parameters(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters by name, with the attributes that stage 3 adds to them."""
    yield from module.named_parameters()


def _base_optimizer(zero: Any) -> torch.optim.Optimizer:
    """The torch optimizer under a ZeRO optimizer; itself at stage 0."""
    return zero if isinstance(zero, torch.optim.Optimizer) else zero.optimizer


def _linked_fragments(module: nn.Module, zero: Any) -> list[Fragment]:
    """Stages 1 and 2: each parameter is linked to the piece of the flat partition it is in."""
    flats = zero.single_partition_of_fp32_groups
    pieces = []
    for key, parameter in module.named_parameters():
        link = getattr(parameter, "_hp_mapping", None)
        if link is None:
            continue
        address = link.hp_fragment_address
        flat = flats[link.param_group_index]
        sources = {MASTER: flat.detach(), **moments(zero.optimizer.state[flat])}
        states = {
            state: value.narrow(0, address.start, address.numel) for state, value in sources.items()
        }
        pieces.append(Fragment(key, tuple(parameter.shape), link.lp_fragment_address.start, states))
    return pieces
