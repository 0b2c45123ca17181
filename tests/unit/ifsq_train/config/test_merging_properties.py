"""For any recipes that extend each other: the nearest layer wins, key by key, overrides last."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ifsq_train.config.load import resolve_recipe

KEYS = st.sampled_from(["a", "b", "c", "d"])
PLAIN = st.integers(-5, 5) | st.booleans() | st.sampled_from(["x", "y"]) | st.none()
LEAVES = PLAIN | st.lists(st.integers(0, 3), max_size=3)
LAYERS = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3)), max_size=4
)


def merged(below: Any, above: Any) -> Any:
    """What is meant: sections are merged, everything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


def resolve(layers: list[dict[str, Any]], overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for number, layer in enumerate(layers):
            extends = {"extends": f"{number - 1}.yaml"} if number else {}
            (Path(folder) / f"{number}.yaml").write_text(yaml.safe_dump(extends | layer))
        return resolve_recipe(Path(folder) / f"{len(layers) - 1}.yaml", overrides)


@settings(max_examples=40)
@given(st.lists(LAYERS, min_size=1, max_size=2), st.lists(st.tuples(KEYS, PLAIN), max_size=2))
def test_layers_and_overrides(layers: list[dict], overrides: list[tuple[str, Any]]) -> None:
    words = [f"{key}={yaml.safe_dump(value).split(chr(10))[0]}" for key, value in overrides]
    expected: Any = {}
    for layer in [*layers, *({key: value} for key, value in overrides)]:
        expected = merged(expected, layer)
    assert resolve(layers, words) == expected


@settings(max_examples=15)
@given(LAYERS)
def test_an_empty_layer_changes_nothing(layer: dict[str, Any]) -> None:
    assert resolve([layer, {}], []) == resolve([layer], []) == layer
