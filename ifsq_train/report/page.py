"""One self-contained page that shows a pipeline run: numbers, images, curves.

The page makes no request: images are PNG data URIs and charts are inline SVG, so it can be
mailed, archived, or opened from object storage years later.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.storage.local import write_atomically
from ifsq_train.report.charts import Curve, charts, level_charts, line_chart

_MAX_PAIRS = 32
_SMALLEST_SHOWN_SIDE = 96
_LARGE_SIDE = 128
_MISSING = "not measured"
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
        _section("Result", _tiles(_headline(result))),
        _section("Reconstructions", _reconstructions(originals, reconstructions)),
        _section("Samples by class", _sample_grid(samples, class_names)),
        _section("Losses", charts([line_chart(n, c) for n, c in curves.items()])),
        _section("Use of quantizer levels", level_charts(histograms)),
        _section("Time per stage", _stage_bars(stages)),
        _section("Stages in detail", _stage_table(stages)),
        _section("Versions", _pairs_table(result.get("versions", {}))),
    ]
    write_atomically(path, _page("".join(parts)).encode())


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
    evaluation = stages.get("evaluate", {})
    lost = [rows.get("missing_rows"), rows.get("duplicate_rows")]
    row_note = f"{_count(lost[0])} missing, {_count(lost[1])} duplicate"
    return [
        ("Reconstruction PSNR", _number(tokenizer.get("psnr_db"), " dB"), "higher is better"),
        (
            "Code entropy",
            _number(tokenizer.get("code_entropy_bits"), " bits"),
            "per token, over the evaluated images",
        ),
        (
            "Samples of the right class",
            _percent(evaluation.get("class_accuracy")),
            f"the same classifier on real images: {_percent(evaluation.get('classifier_accuracy'))}"
            f"; {_count(evaluation.get('num_samples'))} samples",
        ),
        (
            "Token rows",
            f"{_count(rows.get('rows'))} of {_count(rows.get('expected_rows'))}",
            row_note if not any(lost) else f"Attention: {row_note}",
        ),
        ("Wall time", _duration(result.get("wall_seconds")), "all stages together"),
        ("Peak memory", _bytes(result.get("peak_memory_bytes")), "resident, as measured"),
    ]


def _number(value: Any, unit: str = "") -> str:
    if value is None:
        return _MISSING
    if isinstance(value, float):
        return (f"{value:.4g}" if math.isfinite(value) else str(value)) + unit
    return f"{value}{unit}"


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{100 * value:.1f} %"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _MISSING
    if seconds < 100:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    text = f"{rest // 60} min {rest % 60} s"
    return f"{hours} h {text}" if hours else text


def _bytes(value: int | None) -> str:
    if value is None:
        return _MISSING
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    tiles = (
        f"<div class=tile><dt>{escape(label)}</dt><dd>{escape(value)}</dd>"
        f"<p{' class=bad' if note.startswith('Attention') else ''}>{escape(note)}</p></div>"
        for label, value, note in facts
    )
    return f"<dl class=tiles>{''.join(tiles)}</dl>"


# ---------------------------------------------------------------- images


def _png(image: np.ndarray, label: str) -> str:
    """An img element; small images are enlarged by whole factors so that pixels stay visible."""
    height, width = image.shape[:2]
    factor = max(1, math.ceil(_SMALLEST_SHOWN_SIDE / max(height, width)))
    picture = Image.fromarray(np.ascontiguousarray(image))
    enlarged = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    enlarged.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(label, quote=True)}">'


def _gallery(images: np.ndarray) -> str:
    """Style class: detailed images are shown larger."""
    return "images large" if images.shape[-2] >= _LARGE_SIDE else "images"


def _reconstructions(originals: np.ndarray, reconstructions: np.ndarray) -> str:
    shown = min(len(originals), _MAX_PAIRS)
    pairs = (
        f"<figure class=pair>{_png(originals[i], f'original {i}')}"
        f"{_png(reconstructions[i], f'reconstruction {i}')}</figure>"
        for i in range(shown)
    )
    note = "Left: original. Right: what the tokenizer makes of it."
    if shown < len(originals):
        note += f" The first {shown} of {len(originals)}."
    style = _gallery(originals)
    return f"<p class=note>{note}</p><div class='{style}'>{''.join(pairs)}</div>"


def _sample_grid(samples: np.ndarray, class_names: Sequence[str]) -> str:
    rows = (
        f"<div class=row><b>{escape(name)}</b><div class='{_gallery(samples)}'>"
        + "".join(_png(image, f"sample {i} of class {name}") for i, image in enumerate(images))
        + "</div></div>"
        for name, images in zip(class_names, samples, strict=True)
    )
    return "".join(rows)


# ---------------------------------------------------------------- tables


def _stage_bars(stages: Mapping[str, Mapping[str, Any]]) -> str:
    seconds = {name: stage.get("seconds") or 0.0 for name, stage in stages.items()}
    longest = max(seconds.values(), default=0.0) or 1.0
    rows = (
        f"<div class=bar-row><span>{escape(_STAGE_NAMES.get(name, name))}</span>"
        f'<div><i style="width:{100 * value / longest:.1f}%"></i></div>'
        f"<span class=value>{_duration(value)}</span></div>"
        for name, value in seconds.items()
    )
    return f"<div class=bars>{''.join(rows)}</div>"


def _stage_table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    tables = (
        f"<div><h3>{escape(_STAGE_NAMES.get(name, name))}</h3>{_pairs_table(stage)}</div>"
        for name, stage in stages.items()
    )
    return f"<div class=tables>{''.join(tables)}</div>"


def _pairs_table(values: Mapping[str, Any]) -> str:
    """Names and values; nested mappings are left to result.json."""
    rows = (
        f"<tr><th scope=row>{escape(str(key).replace('_', ' '))}</th>"
        f"<td>{escape(_number(value))}</td></tr>"
        for key, value in values.items()
        if not isinstance(value, Mapping | list)
    )
    return f"<table>{''.join(rows)}</table>"


# ---------------------------------------------------------------- the page


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _page(body: str) -> str:
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta http-equiv=Content-Security-Policy content="default-src &#39;none&#39;;'
        ' img-src data:; style-src &#39;unsafe-inline&#39;">'
        f"<title>ifsq-train report</title><style>{_STYLE}</style></head><body><main>"
        "<header><h1>ifsq-train report</h1><p class=note>From images to a tokenizer, to token"
        " shards, to a generator and its samples.</p></header>"
        f"{body}</main></body></html>\n"
    )


_STYLE = """
:root{color-scheme:light dark;--page:#fafaf8;--card:#fff;--text:#1d1f21;--quiet:#62676c;
--rule:#e3e4e1;--accent:#2b6cb0;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--page:#141618;--card:#1c1f22;--text:#e6e7e8;
--quiet:#9ba1a7;--rule:#2f3438;--accent:#7db4ea;--bad:#ff9d94}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:24px;margin:0}h2{font-size:17px;margin:40px 0 12px}h3{font-size:14px;margin:0 0 4px}
.note,.tile p{color:var(--quiet);margin:0 0 12px;font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,280px),1fr));gap:12px;
margin:0}
.tile,.chart{background:var(--card);border:1px solid var(--rule);border-radius:8px;
padding:12px 14px;margin:0}
.tile dt{color:var(--quiet);font-size:13px}
.tile dd{margin:2px 0;font-size:24px;font-weight:600;font-variant-numeric:tabular-nums}
.tile p{margin:0}.tile p.bad{color:var(--bad);font-weight:600}
.images{display:flex;flex-wrap:wrap;gap:8px;--side:72px}
.images.large{--side:144px}
img{display:block;width:var(--side);height:auto;image-rendering:pixelated;border-radius:3px;
background:var(--rule)}
.pair{display:flex;gap:2px;margin:0 6px 6px 0}
.row{display:grid;grid-template-columns:minmax(64px,120px) 1fr;gap:12px;align-items:center;
padding:6px 0}
.row+.row{border-top:1px solid var(--rule)}
.row b{font-weight:500;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:12px}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;font-size:13px}
figcaption b{overflow-wrap:anywhere}figcaption span{color:var(--quiet)}
svg{display:block;width:100%;height:auto;margin-top:6px}
svg text{font-size:10.5px;fill:var(--quiet);font-variant-numeric:tabular-nums}
.grid{stroke:var(--rule)}.axis{stroke:var(--quiet)}
.even{stroke:var(--text);stroke-dasharray:4 4;opacity:.55}
.line{fill:none;stroke:var(--accent);stroke-width:1.8;stroke-linejoin:round}
.dot,.bar{fill:var(--accent)}
.bar-row{display:grid;grid-template-columns:minmax(90px,150px) 1fr 84px;gap:12px;
align-items:center;padding:3px 0;font-size:14px}
.bar-row i{display:block;height:14px;min-width:2px;background:var(--accent);
border-radius:0 4px 4px 0}
.value{text-align:right;font-variant-numeric:tabular-nums}
.tables{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:24px}
table{border-collapse:collapse;width:100%;max-width:480px;font-size:13px}
th,td{text-align:left;font-weight:400;padding:4px 0;border-bottom:1px solid var(--rule);
vertical-align:top}
@media(max-width:600px){.images{--side:48px;gap:4px}.images.large{--side:96px}
.row{grid-template-columns:56px 1fr;font-size:13px}}
th{color:var(--quiet);padding-right:16px}
td{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
""".strip()
