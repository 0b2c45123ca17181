"""An evaluation's numbers as a table with units, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

UNITS: dict[str, str] = {
    "psnr_db": "dB, higher is better",
    "psnr_db_8bit": "dB, of images rounded to 8 bits",
    "ssim": "1 is equal",
    "ssim_8bit": "of images rounded to 8 bits",
    "l1": "mean absolute error in [-1, 1], lower is better",
    "lpips": "lower is better",
    "frechet_distance": "lower is better",
    "fid": "lower is better; compare equal counts of images only",
    "kid": "lower is better; unbiased, may be slightly below 0",
    "rfid": "FID of reconstructions, lower is better",
    "inception_score": "higher is better",
    "precision": "share of samples near real images",
    "recall": "share of real images near samples",
    "cknna": "alignment with the teacher, 1 at most",
    "used_codes": "of the codebook, in these images",
    "perplexity": "codes that are in effect used",
}
_NETWORKS = {
    "tokenizer-encoder": "in features of this tokenizer's own encoder: no FID, comparable only"
    " between samples of this tokenizer",
}


def measure_lines(result: Mapping[str, Any]) -> list[str]:
    """Lines "name  value  unit" for every number; lists are summed up in a line each.

    Args:
        result: `EvaluationResult.to_dict`.
    """
    metrics, networks = result["metrics"], result.get("networks", {})
    rows = [
        (name, _value(value), _note(name, metrics, networks))
        for name, value in metrics.items()
        if name not in ("digit_histograms",)
    ]
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    return [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows]


def _value(value: Any) -> str:
    if value is None:
        return "infinite"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.6g}"
    if isinstance(value, list):
        numbers = [part for part in value if isinstance(part, int | float)]
        if len(value) <= 4 or len(numbers) != len(value):
            return ", ".join(_value(part) for part in value[:4]) + (", ..." if value[4:] else "")
        return f"{min(numbers):.4g} to {max(numbers):.4g}"
    return str(value)


def _note(name: str, metrics: Mapping[str, Any], networks: Mapping[str, Any]) -> str:
    if name == "code_entropy_bits":
        sizes = metrics.get("codebook_size")
        whole = [sizes] if isinstance(sizes, int) else sizes or []
        return f"bits per token of at most {sum(math.log2(size) for size in whole):.2f}"
    network = networks.get(name)
    if network is None:
        return UNITS.get(name, "")
    used = network["name"] if isinstance(network, Mapping) else network
    return "; ".join(part for part in (UNITS.get(name, ""), _NETWORKS.get(used, used)) if part)
