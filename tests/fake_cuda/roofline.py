"""A bound on the time of every case, from the operations and bytes that were counted.

    python -m tests.fake_cuda.roofline [--only NAME ...] [--top 12]
        [--ways eager compiled low]

Rates are those of an H100: 989 TFLOP/s in bf16 and half of it in fp32 with TF32, of which matrix
products reach 70 % and attention 35 %; 3.35 TB/s, of which kernels reach 85 %. A kernel takes the
longer of both, and 3 microseconds at least.

Eager, every operator is a kernel. Compiled blocks (`strategy.compile`) are traced by AOTAutograd
with the partition that torch.compile takes between forward and backward. In what is left, operators
between two products are one kernel, which reads every tensor from outside once and writes what is
used outside; a sum over samples reads its input again. That is a model of the compiler, not the
compiler, and a bound, not a time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from functorch.compile import aot_function, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ifsq_train.models import token_head
from ifsq_train.models.token_head import TokenHead
from ifsq_train.sampling.static_decoder import StaticDecoder
from ifsq_train.training.kernels import compile_blocks
from tests.fake_cuda import cases
from tests.fake_cuda.device import enable
from tests.fake_cuda.trace import QUESTIONS, VIEWS, Trace, kernels_of_a_gpu

BF16_FLOPS, FP32_FLOPS = 989e12, 494e12
PRODUCT_SHARE, ATTENTION_SHARE = 0.70, 0.35
BYTES_PER_SECOND = 3.35e12 * 0.85
LEAST_SECONDS = 3e-6
_LOGIT_BYTES = 80 * 2**30 // 64
"""Held at once on a GPU of 80 GiB, see `token_head`."""
_MOST_IN_A_ROW = 16384
WAYS = ("eager", "compiled", "low")
ALONE = frozenset(
    {"cat", "index_put_", "embedding_dense_backward", "scatter_add_", "sort", "copy_"}
)
"""Operators besides products that the compiler does not merge with others here."""
SUMS = frozenset({"sum", "mean", "var_mean", "amax", "logsumexp"})


@dataclass
class Kernel:
    """One operator, or several that are one kernel.

    Attributes:
        name: of the operator, or `fused`.
        flops: of products and attention.
        rate: FLOP/s that its type reaches.
        moved: bytes.
    """

    name: str
    flops: float
    rate: float
    moved: float

    @property
    def seconds(self) -> float:
        """The bound."""
        return max(self.flops / self.rate, self.moved / BYTES_PER_SECOND, LEAST_SECONDS)


@dataclass
class _Step:
    """An operator inside a compiled graph.

    Attributes:
        reads, writes: bytes by memory.
        merges: with its neighbours, into one kernel.
        again: bytes that it reads once more than a kernel that it is part of.
        level: most products on any way to it, its own included.
    """

    kernel: Kernel
    reads: dict[int, float]
    writes: dict[int, float]
    merges: bool
    again: float
    level: int = 0


def _bytes(tensor: Tensor) -> float:
    """Of memory that is there: a dimension that is expanded does not count."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or size == 1 else 1
    return float(count * tensor.element_size())


def _by_memory(tensors: Sequence[Tensor]) -> dict[int, float]:
    return {id(x.untyped_storage()): _bytes(x) for x in tensors}


class Roofline(Trace):
    """Also notes kernels.

    Attributes:
        found: all kernels so far.
        paused: nothing is noted, as a graph is being made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Kernel] = []
        self.paused = False
        self._steps: list[_Step] | None = None
        self._kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on fake tensors and note it."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        name = func._overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        on_device = any(x.device.type == "cuda" for x in given + made)
        if self.paused or not on_device or name in VIEWS or name in QUESTIONS:
            return result
        formula = flop_registry.get(func._overloadpacket)
        flops = float(formula(*args, **(kwargs or {}), out_val=result)) if formula else 0.0
        kernel = Kernel(name, flops, _rate(name, given), sum(map(_bytes, given + made)))
        if name == "index_put_":
            kernel.moved = 2 * _bytes(given[-1])
        if name == "embedding":
            kernel.moved = 2 * sum(map(_bytes, made))
        if self._steps is None:
            self.found.append(kernel)
            return result
        self._kept += [*given, *made]  # so that no two of them share an identity
        merges = formula is None and name not in ALONE
        again = _bytes(given[0]) if name in SUMS and _in_two_passes(given[0], made[0]) else 0.0
        step = _Step(kernel, _by_memory(given), _by_memory(made), merges, again)
        self._steps.append(step)
        return result

    def run(self, graph: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        """Run a compiled graph and note its kernels."""
        if self._steps is not None:
            return graph(*inputs)
        self._steps = []
        paused, self.paused = self.paused, False
        try:
            results = graph(*inputs)
            given = [x for x in tree_leaves(results) if isinstance(x, Tensor)]
            self.found += merged(self._steps, set(_by_memory(given)))
        finally:
            self._steps, self.paused = None, paused
            self._kept.clear()
        return results


def _in_two_passes(read: Tensor, made: Tensor) -> bool:
    """Whether a sum cannot be part of the kernel that reads its rows once: it goes over samples, or
    over more than a block of threads holds."""
    return made.shape[:1] != read.shape[:1] or read.numel() > _MOST_IN_A_ROW * made.numel()


def _rate(name: str, given: list[Tensor]) -> float:
    if "scaled_dot" in name:
        return BF16_FLOPS * ATTENTION_SHARE
    types = [x.dtype for x in given if x.is_floating_point()]
    half = bool(types) and all(dtype.itemsize <= 2 for dtype in types)
    return (BF16_FLOPS if half else FP32_FLOPS) * PRODUCT_SHARE


def merged(steps: Sequence[_Step], results: set[int]) -> list[Kernel]:
    """The kernels of a compiled graph.

    Operators that merge are one kernel where one reads what the other writes and no product lies
    between them on any way through the graph.

    Args:
        steps: in order.
        results: memory that is read afterwards.
    """
    parent = list(range(len(steps)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    before = _set_levels(steps)
    for index, step in enumerate(steps):
        for i in before[index]:
            if step.merges and steps[i].merges and steps[i].level == step.level:
                parent[root(index)] = root(i)
    groups: dict[int, list[_Step]] = {}
    for index, step in enumerate(steps):
        groups.setdefault(root(index), []).append(step)
    readers = Counter(place for step in steps for place in step.reads)
    return [_as_one(group, readers, results) for group in groups.values()]


def _set_levels(steps: Sequence[_Step]) -> list[list[int]]:
    """Give steps their levels; for each, the steps whose results it reads."""
    writer: dict[int, int] = {}
    before: list[list[int]] = []
    after: list[list[int]] = [[] for _ in steps]
    for index, step in enumerate(steps):
        before.append([writer[place] for place in step.reads if place in writer])
        step.level = max((steps[i].level for i in before[-1]), default=0) + (not step.merges)
        for i in before[-1]:
            after[i].append(index)
        writer |= dict.fromkeys(step.writes, index)
    for index in reversed(range(len(steps))):
        # What depends on no product is computed where it is needed.
        if steps[index].merges and steps[index].level == 0 and after[index]:
            steps[index].level = min(steps[i].level - (not steps[i].merges) for i in after[index])
    return before


def _as_one(group: list[_Step], readers: Counter[int], results: set[int]) -> Kernel:
    if len(group) == 1:
        return group[0].kernel
    written = {place: size for step in group for place, size in step.writes.items()}
    read = {place: size for step in group for place, size in step.reads.items()}
    inside = Counter(place for step in group for place in step.reads)
    moved = sum(size for place, size in read.items() if place not in written)
    moved += sum(
        size
        for place, size in written.items()
        if place in results or readers[place] > inside[place]
    )
    return Kernel("fused", 0.0, FP32_FLOPS, moved + sum(step.again for step in group))


def compile_on_fakes(trace: Roofline, network: nn.Module) -> None:
    """Let blocks of a network run as torch.compile would have them, in the trace's view.

    The blocks are those that `strategy.compile: auto` compiles.
    """
    if isinstance(network, StaticDecoder):
        # One graph for a whole token.
        decoder: Any = network
        whole = decoder.forward
        decoder.forward = lambda *inputs: trace.run(whole, inputs)
        return
    blocks: list[nn.Module] = []
    with patch.object(nn.Module, "compile", lambda block, **_: blocks.append(block)):
        compile_blocks(network)
    graphs: dict[Any, Callable[..., Any]] = {}
    for block in blocks:
        block.forward = _traced(trace, block, block.forward, graphs)
    for part in network.modules():
        if isinstance(part, TokenHead):
            part.compiled = True
    token_head._compiled = lambda: lambda *inputs: trace.run(token_head._visit, inputs)


def _traced(
    trace: Roofline,
    block: nn.Module,
    forward: Callable[..., Any],
    graphs: dict[Any, Callable[..., Any]],
) -> Callable[..., Any]:
    """The block as one graph forward and one backward; blocks of one shape share them."""

    def noted(graph: Any, _inputs: Any) -> Callable[..., Any]:
        def boxed(inputs: list[Any]) -> Any:
            given = list(inputs)
            inputs.clear()
            return trace.run(graph, given)

        boxed._boxed_call = True  # pyright: ignore[reportFunctionMemberAccess]
        return boxed

    compiler: Any = noted

    def run(*args: Any) -> Any:
        parameters = dict(block.named_parameters())
        tensors = [x for x in args if isinstance(x, Tensor)]
        # Tables of positions that are handed over as a module.
        tables = {id(x): dict(x.named_buffers()) for x in args if isinstance(x, nn.Module)}
        tensors += [table for own in tables.values() for table in own.values()]

        def plain(values: list[Tensor], given: list[Tensor]) -> Any:
            rest = iter(given)
            own = [next(rest) if isinstance(x, Tensor) else x for x in args]
            with ExitStack() as stack:
                new = dict(zip(parameters, values, strict=True))
                stack.enter_context(_reparametrize_module(block, new))
                for part in args:
                    if isinstance(part, nn.Module):
                        new = {name: next(rest) for name in tables[id(part)]}
                        stack.enter_context(_reparametrize_module(part, new))
                return forward(*own)

        shapes = tuple((x.shape, x.dtype) for x in (*parameters.values(), *tensors))
        key = type(block), torch.is_grad_enabled(), shapes
        trace.paused = key not in graphs
        if trace.paused:
            graphs[key] = aot_function(
                plain,
                fw_compiler=compiler,
                bw_compiler=compiler,
                partition_fn=min_cut_rematerialization_partition,
            )
        with patch.object(torch.compiler, "is_compiling", lambda: True):
            result = graphs[key](list(parameters.values()), tensors)
        trace.paused = False
        return result

    return run


def kernels_of(name: str, *, eager: bool = False, low: bool = False) -> list[Kernel]:
    """What one case runs, eagerly or with compiled blocks, `low` with bf16 residuals."""
    made: list[Roofline] = []

    def trace() -> Roofline:
        made.append(Roofline())
        return made[-1]

    def prepare(trace: Roofline, networks: Sequence[nn.Module]) -> None:
        for network in () if eager else networks:
            if low and hasattr(network, "residual_dtype"):
                setattr(network, "residual_dtype", torch.bfloat16)  # noqa: B010 - not a tensor
            compile_on_fakes(trace, network)

    with (
        kernels_of_a_gpu(),
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(cases, "watch", cases.Watch(trace, prepare)),
        patch.object(token_head, "logit_bytes", lambda _device: _LOGIT_BYTES),
    ):
        cases.CASES[name]()
    return made[-1].found


def bound(kernels: Sequence[Kernel], top: int) -> dict[str, Any]:
    """Milliseconds, the part of products and attention, how many kernels, and the dearest."""
    products = [kernel for kernel in kernels if kernel.flops]
    by_name: dict[str, list[float]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, []).append(kernel.seconds)
    dearest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:top]
    most = {name: [round(sum(times) * 1e3, 2), len(times)] for name, times in dearest}
    return {
        "ms": round(sum(kernel.seconds for kernel in kernels) * 1e3, 2),
        "ms_of_products": round(sum(kernel.seconds for kernel in products) * 1e3, 2),
        "kernels": len(kernels),
        **({"dearest": most} if top else {}),
    }


def main() -> None:
    """Bounds of the cases as JSON lines, the eager one and that of compiled blocks."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", nargs="+", default=list(cases.CASES), choices=list(cases.CASES))
    options.add_argument("--ways", nargs="+", default=["eager", "compiled"], choices=WAYS)
    options.add_argument("--top", type=int, default=0, help="name so many of the dearest kernels")
    args = options.parse_args()
    enable()
    for name in args.only:
        found = {
            way: bound(kernels_of(name, **{way: True} if way in ("eager", "low") else {}), args.top)
            for way in args.ways
        }
        sys.stdout.write(json.dumps({"case": name, **found}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
