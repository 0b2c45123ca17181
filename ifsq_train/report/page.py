"""One self-contained page that shows a pipeline run: numbers, images, curves.

The page makes no request: images are PNG data URIs and charts are inline SVG, so it can be
mailed, archived, or opened from object storage years later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.storage.local import write_atomically
from ifsq_train.report.charts import Curve, charts, explanation, level_charts, line_chart
from ifsq_train.report.elements import (
    count,
    duration,
    number,
    page,
    pairs_table,
    percent,
    reconstruction_pairs,
    sample_grid,
    section,
    size,
    tiles,
)

_STAGE_NAMES = {
    "pack": "Pack shards",
    "tokenizer": "Train tokenizer",
    "precompute": "Precompute tokens",
    "generator": "Train generator",
    "sample": "Draw samples",
    "evaluate": "Evaluate",
}


def write_report(
    path: Path,
    result: Mapping[str, Any],
    *,
    originals: np.ndarray,
    reconstructions: np.ndarray,
    samples: np.ndarray,
    class_names: Sequence[str],
    curves: Mapping[str, Curve],
    histograms: np.ndarray,
) -> None:
    """Write the page; a reader or a kill finds the old page or the new one.

    Args:
        path: HTML file to write.
        result: the pipeline's result: ``stages`` by name (``seconds`` and the stage's own
            numbers), ``wall_seconds``, ``peak_memory_bytes``, ``versions``. Numbers that are
            absent or None are shown as not measured.
        originals: uint8 [N, H, W, 3] in [0, 255].
        reconstructions: uint8 [N, H, W, 3], what the tokenizer makes of `originals`.
        samples: uint8 [C, K, H, W, 3], K drawn images of each of C classes.
        class_names: C names.
        curves: loss by name, as (step, value) pairs in the order of steps.
        histograms: float [channels, levels], how often each level of each latent channel is
            used, as counts or shares; NaN where a channel has fewer levels.

    Raises:
        ValueError: shapes or types do not fit each other.
    """
    _check_images(originals, reconstructions, samples, class_names)
    stages = result.get("stages", {})
    parts = [
        section("Result", tiles(_headline(result))),
        section("Reconstructions", reconstruction_pairs(originals, reconstructions)),
        section("Samples by class", sample_grid(list(samples), class_names)),
        section("Losses", charts([line_chart(n, c, explanation(n)) for n, c in curves.items()])),
        section("Use of quantizer levels", level_charts(histograms)),
        section("Time per stage", _stage_bars(stages)),
        section("Stages in detail", _stage_table(stages)),
        section("Versions", pairs_table(result.get("versions", {}))),
        section("What next", _NEXT),
    ]
    write_atomically(path, page("".join(parts)).encode())


def _check_images(
    originals: np.ndarray,
    reconstructions: np.ndarray,
    samples: np.ndarray,
    class_names: Sequence[str],
) -> None:
    for name, images, axes in (
        ("originals", originals, 4),
        ("reconstructions", reconstructions, 4),
        ("samples", samples, 5),
    ):
        if images.dtype != np.uint8 or images.ndim != axes or images.shape[-1] != 3:
            raise ValueError(
                f"{name}: found {images.dtype} {list(images.shape)};"
                f" give uint8 with {axes} axes, the last one of 3 colours"
            )
    if originals.shape != reconstructions.shape:
        raise ValueError(
            f"originals {list(originals.shape)} and reconstructions"
            f" {list(reconstructions.shape)} differ in shape; give one for each other"
        )
    if len(class_names) != len(samples):
        raise ValueError(f"{len(class_names)} class names for {len(samples)} rows of samples")


# ---------------------------------------------------------------- numbers


def _headline(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, value and a line of explanation of every headline number."""
    stages = result.get("stages", {})
    tokenizer, rows = stages.get("tokenizer", {}), stages.get("precompute", {})
    generator, evaluation = stages.get("generator", {}), stages.get("evaluate", {})
    lost = [rows.get("missing_rows"), rows.get("duplicate_rows")]
    row_note = f"{count(lost[0])} missing, {count(lost[1])} duplicate"
    return [
        ("Reconstruction PSNR", number(tokenizer.get("psnr_db"), " dB"), "higher is better"),
        (
            "Code entropy",
            number(tokenizer.get("code_entropy_bits"), " bits"),
            "per token, over the evaluated images",
        ),
        (
            "Samples of the right class",
            percent(evaluation.get("class_accuracy")),
            f"on real images: {percent(evaluation.get('classifier_accuracy'))}; by chance:"
            f" {percent(evaluation.get('chance_accuracy'))};"
            f" {count(evaluation.get('num_samples'))} samples",
        ),
        (
            "Generator loss, held out",
            number(generator.get("held_out_loss"), " nats"),
            f"per position; on training images: {number(generator.get('final_loss'))} (with"
            f" dropout); by chance: {number(generator.get('chance_loss'))}",
        ),
        (
            "Token rows",
            f"{count(rows.get('rows'))} of {count(rows.get('expected_rows'))}",
            row_note if not any(lost) else f"Attention: {row_note}",
        ),
        ("Wall time", duration(result.get("wall_seconds")), "all stages together"),
        ("Peak memory", size(result.get("peak_memory_bytes")), "resident, as measured"),
    ]


# ---------------------------------------------------------------- tables


def _stage_bars(stages: Mapping[str, Mapping[str, Any]]) -> str:
    seconds = {name: stage.get("seconds") or 0.0 for name, stage in stages.items()}
    longest = max(seconds.values(), default=0.0) or 1.0
    rows = (
        f"<div class=bar-row><span>{escape(_STAGE_NAMES.get(name, name))}</span>"
        f'<div><i style="width:{100 * value / longest:.1f}%"></i></div>'
        f"<span class=value>{duration(value)}</span></div>"
        for name, value in seconds.items()
    )
    return f"<div class=bars>{''.join(rows)}</div>"


def _stage_table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    tables = (
        f"<div><h3>{escape(_STAGE_NAMES.get(name, name))}</h3>{pairs_table(_shown(stage))}</div>"
        for name, stage in stages.items()
    )
    return f"<div class=tables>{''.join(tables)}</div>"


def _shown(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A training that was not resumed says so."""
    fresh = {"resumed_from": "started fresh"} if stage.get("resumed_from", 0) is None else {}
    return {**stage, **fresh}


_NEXT = """<ul>
<li>On your own images: <code>ifsq demo --data FOLDER</code>, one folder per class</li>
<li>Recipes that fit your images, to be edited: <code>ifsq init FOLDER</code></li>
<li>Other quantizers and settings side by side: <code>ifsq compare RUN RUN</code></li>
<li>What every stage does: the quickstart in the documentation</li>
</ul>"""
