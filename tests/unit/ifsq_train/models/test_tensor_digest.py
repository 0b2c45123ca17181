"""A network's fingerprint is another for every change that a user could see."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from ifsq_train.models.fingerprint import update_with_tensors

BASE = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
OTHERS: dict[str, dict[str, Tensor]] = {
    "one value": BASE | {"a": BASE["a"] + torch.eye(2, 3) * 1e-6},
    "the shape": BASE | {"a": BASE["a"].view(3, 2)},
    "the order of values": BASE | {"a": BASE["a"].flip(0)},
    "transposed in place": BASE | {"a": BASE["a"].t().contiguous().view(2, 3)},
    "the type": BASE | {"b": BASE["b"].view(torch.float64)},
    "a name": {"c": BASE["a"], "b": BASE["b"]},
    "names exchanged": {"a": BASE["b"], "b": BASE["a"]},
    "one less": {"a": BASE["a"]},
    "the sign of zero": BASE | {"a": BASE["a"] * torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])},
}


def digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    update_with_tensors(found, tensors)
    return found.hexdigest()


@pytest.mark.parametrize("what", list(OTHERS))
def test_every_change_is_seen(what: str) -> None:
    assert digest(OTHERS[what]) != digest(BASE)


def test_neither_the_order_of_names_nor_memory_matters() -> None:
    strided = torch.arange(12.0).view(2, 6)[:, ::2] / 2
    assert torch.equal(strided, BASE["a"])
    assert digest({"b": BASE["b"].requires_grad_(False), "a": strided}) == digest(BASE)
