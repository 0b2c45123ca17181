"""Kubernetes quantities such as ``500m`` or ``16Gi`` as numbers."""

from __future__ import annotations

import re
from decimal import Decimal

from data_pipelines.errors import UserError

_POWERS = {"k": 1, "M": 2, "G": 3, "T": 4}


def parse_quantity(text: str) -> Decimal:
    """The number a quantity stands for, in CPUs or bytes.

    Raises:
        UserError: not a quantity.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m|[kMGT]|[KMGT]i)?", text)
    if match is None:
        raise UserError(f"'{text}' is not a quantity; write for example 4, 500m or 16Gi")
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix == "m":
        return number / 1000
    if suffix.endswith("i"):
        return number * 1024 ** _POWERS[suffix[0].replace("K", "k")]
    return number * 1000 ** _POWERS[suffix] if suffix else number
