"""The graph of tasks: order, room, failures; a few lines play Ray and end tasks in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from launchers.on_ray.graph import Node, Outcome, _Run


class PlayedRay:
    """Ends the task that was handed over first, every time it is waited for."""

    def __init__(self, cpus: float, failing: tuple[str, ...] = ()) -> None:
        self.cpus, self.failing = cpus, failing
        self.open: list[str] = []
        self.started: list[str] = []
        self.most_open = 0
        self.times_asked = 0

    def cluster_resources(self) -> dict[str, float]:
        self.times_asked += 1
        return {"CPU": self.cpus}

    def options(self, name: str, **_: Any) -> PlayedRay:
        self.next = name
        return self

    def remote(self, *_: Any) -> str:
        self.open.append(self.next)
        self.started.append(self.next)
        self.most_open = max(self.most_open, len(self.open))
        return self.next

    def wait(self, references: list[str], *, timeout: float, **_: Any) -> Any:
        assert set(references) <= set(self.open)
        if timeout == 0:
            return [], references
        ended = self.open.pop(0)
        return [ended], [one for one in references if one != ended]

    def get(self, reference: str) -> None:
        from ray.exceptions import RayTaskError

        if reference in self.failing:
            raise RayTaskError("_call", "traceback", ValueError(f"{reference} is broken"))


def started(nodes: list[Node], ray: PlayedRay) -> tuple[list[Outcome], PlayedRay]:
    graph = {node.key: node for node in nodes}
    run = _Run(ray, graph, ray, print, dict.fromkeys(graph, ()), None)
    return list(run.outcomes(None)), ray


def chain(count: int) -> list[Node]:
    return [Node(f"{i}") for i in range(count)]


def test_inputs_come_first_and_every_node_ends_once() -> None:
    nodes = [Node("c", ("b",)), Node("b", ("a", "elsewhere")), Node("a"), Node("d")]
    outcomes, ray = started(nodes, PlayedRay(2))
    assert sorted(one.key for one in outcomes) == ["a", "b", "c", "d"]
    assert ray.started.index("a") < ray.started.index("b") < ray.started.index("c")
    assert not any(one.error for one in outcomes)


def test_ray_has_the_next_task_before_a_slot_is_free_but_not_all_of_them() -> None:
    _, ray = started(chain(20), PlayedRay(3))
    assert ray.most_open == 6


@pytest.mark.parametrize("cpus", [4, 5])
def test_groups_are_started_only_where_they_fit_whole(cpus: float) -> None:
    groups = [Node(f"{i}", cpus=0, more_cpus=2) for i in range(6)]
    _, ray = started(groups, PlayedRay(cpus))
    assert ray.most_open == 2


def test_a_single_task_does_not_take_the_room_of_a_group() -> None:
    nodes = [*chain(8), Node("group", cpus=0, more_cpus=4)]
    _, ray = started(nodes, PlayedRay(4))
    assert ray.most_open == 4


def test_a_node_larger_than_the_cluster_is_left_to_ray_alone() -> None:
    nodes = [*chain(2), Node("large", cpus=64)]
    outcomes, ray = started(nodes, PlayedRay(2))
    assert {one.key for one in outcomes} == {"0", "1", "large"}
    assert ray.started[-1] == "large"


def test_a_failure_takes_with_it_what_needs_it_and_nothing_else() -> None:
    nodes = [Node("a"), Node("b", ("a",)), Node("c", ("b",)), Node("d")]
    outcomes, ray = started(nodes, PlayedRay(1, failing=("a",)))
    found = {one.key: one for one in outcomes}
    assert found["a"].error == "ValueError: a is broken"
    assert (found["b"].blocked, found["c"].blocked) == (True, True)
    assert found["d"].error is None
    assert ray.started == ["a", "d"]


def test_the_next_tasks_run_while_the_caller_looks_at_an_outcome() -> None:
    """Records are copied and lines are printed between two outcomes: no slot waits for that."""
    ray = PlayedRay(1)
    nodes = [Node("a"), Node("b", ("a",))]
    graph = {node.key: node for node in nodes}
    work: Callable[..., None] = print
    run = _Run(ray, graph, ray, work, dict.fromkeys(graph, ()), None)
    first = next(run.outcomes(None))
    assert first.key == "a"
    assert ray.open == ["b"]


def test_the_size_of_the_cluster_is_not_asked_for_at_every_task() -> None:
    _, ray = started(chain(50), PlayedRay(2))
    assert ray.times_asked < 25
