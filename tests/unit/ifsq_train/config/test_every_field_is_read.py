"""No key of a recipe is accepted and then looked at by nobody."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

import ifsq_train.config as config
from tests.support.repository import REPOSITORY

READ_AS_A_WHOLE = {
    "kind": "chooses the class, by pydantic",
}
"""Fields that no code reads by name, and why a change of them is seen all the same."""


def models() -> list[type[BaseModel]]:
    """Every configuration class that the package offers."""
    found = {v for v in vars(config).values() if isinstance(v, type) and issubclass(v, BaseModel)}
    return sorted(found, key=lambda model: model.__name__)


def names_read() -> set[str]:
    """Attributes that are read, and strings, which `getattr` and tables of names use."""
    read: set[str] = set()
    for package in ("ifsq_train", "launchers", "data_pipelines"):
        for path in (REPOSITORY / package).rglob("*.py"):
            read |= set(_names_in(ast.parse(path.read_text())))
    return read


def _names_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def read() -> set[str]:
    return names_read()


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_field_is_read(model: type[BaseModel], read: set[str]) -> None:
    unread = [name for name in model.model_fields if name not in read | READ_AS_A_WHOLE.keys()]
    assert unread == [], "remove the key, use it, or say in READ_AS_A_WHOLE why it counts"


def test_the_reader_sees_what_nobody_reads(read: set[str]) -> None:
    assert "a_key_that_" + "nobody_reads" not in read
    assert {"global_batch_size", "zero_stage"} <= read
    assert len(models()) > 15
