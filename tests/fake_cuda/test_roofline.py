"""How operators of a compiled graph become kernels, by hand-made graphs."""

from __future__ import annotations

from tests.fake_cuda.roofline import FP32_FLOPS, Kernel, _Step, merged


def step(name: str, reads: list[int], writes: list[int], *, again: float = 0.0) -> _Step:
    """One operator on memory of 100 bytes each; `mm` is a product."""
    product = name == "mm"
    kernel = Kernel(name, 1e6 if product else 0.0, FP32_FLOPS, 100.0 * len(reads + writes))
    read, written = dict.fromkeys(reads, 100.0), dict.fromkeys(writes, 100.0)
    return _Step(kernel, read, written, not product, again)


def moved(steps: list[_Step], results: set[int]) -> list[tuple[str, float]]:
    return [(kernel.name, kernel.moved) for kernel in merged(steps, results)]


def test_neighbours_are_one_kernel_that_keeps_nothing_in_between() -> None:
    chain = [step("mul", [1], [2]), step("add", [2, 3], [4]), step("exp", [4], [5])]
    assert moved(chain, {5}) == [("fused", 300.0)]
    # A value that is needed afterwards is written as well.
    assert moved(chain, {4, 5}) == [("fused", 400.0)]


def test_a_product_parts_what_is_before_from_what_is_behind() -> None:
    chain = [
        step("mul", [1], [2]), step("exp", [2], [3]), step("mm", [3, 9], [4]),
        step("add", [4], [5]), step("mul", [5, 3], [6]),
    ]  # fmt: skip
    assert moved(chain, {6}) == [("fused", 200.0), ("mm", 300.0), ("fused", 300.0)]


def test_what_depends_on_no_product_is_computed_where_it_is_needed() -> None:
    """As a derivative takes the saved input of its activation."""
    chain = [step("sigmoid", [1], [2]), step("mm", [3, 9], [4]), step("mul", [4, 2], [5])]
    assert sorted(moved(chain, {5})) == [("fused", 300.0), ("mm", 300.0)]


def test_sums_over_samples_read_once_more() -> None:
    chain = [step("mul", [1], [2]), step("sum", [2], [3], again=100.0)]
    assert moved(chain, {3}) == [("fused", 300.0)]
