"""Parts of report pages: formatted numbers, tables, images as data URIs, the page itself."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

MAX_PAIRS = 32


SMALLEST_SHOWN_SIDE = 96


LARGE_SIDE = 128


MISSING = "not measured"


def number(value: Any, unit: str = "") -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        return (f"{value:.4g}" if math.isfinite(value) else str(value)) + unit
    return f"{value}{unit}"


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f} %"


def count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 100:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    text = f"{rest // 60} min {rest % 60} s"
    return f"{hours} h {text}" if hours else text


def size(value: int | None) -> str:
    if value is None:
        return MISSING
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    tiles = (
        f"<div class=tile><dt>{escape(label)}</dt><dd>{escape(value)}</dd>"
        f"<p{' class=bad' if note.startswith('Attention') else ''}>{escape(note)}</p></div>"
        for label, value, note in facts
    )
    return f"<dl class=tiles>{''.join(tiles)}</dl>"


def png(image: np.ndarray, label: str) -> str:
    """An img element; small images are enlarged by whole factors so that pixels stay visible."""
    height, width = image.shape[:2]
    factor = max(1, math.ceil(SMALLEST_SHOWN_SIDE / max(height, width)))
    picture = Image.fromarray(np.ascontiguousarray(image))
    enlarged = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    enlarged.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(label, quote=True)}">'


def gallery(images: np.ndarray) -> str:
    """Style class: detailed images are shown larger."""
    return "images large" if images.shape[-2] >= LARGE_SIDE else "images"


def reconstruction_pairs(originals: np.ndarray, reconstructions: np.ndarray) -> str:
    shown = min(len(originals), MAX_PAIRS)
    pairs = (
        f"<figure class=pair>{png(originals[i], f'original {i}')}"
        f"{png(reconstructions[i], f'reconstruction {i}')}</figure>"
        for i in range(shown)
    )
    note = "Left: original. Right: what the tokenizer makes of it."
    if shown < len(originals):
        note += f" The first {shown} of {len(originals)}."
    style = gallery(originals)
    return f"<p class=note>{note}</p><div class='{style}'>{''.join(pairs)}</div>"


def sample_grid(samples: Sequence[np.ndarray], class_names: Sequence[str]) -> str:
    """One row per class; `samples` holds uint8 [K, H, W, 3] for each of them."""
    rows = (
        f"<div class=row><b>{escape(name)}</b><div class='{gallery(images)} even'>"
        + "".join(png(image, f"sample {i} of class {name}") for i, image in enumerate(images))
        + "</div></div>"
        for name, images in zip(class_names, samples, strict=True)
    )
    return "".join(rows)


def pairs_table(values: Mapping[str, Any]) -> str:
    """Names and values; nested mappings are left to result.json."""
    rows = (
        f"<tr><th scope=row>{escape(str(key).replace('_', ' '))}</th>"
        f"<td>{escape(number(value))}</td></tr>"
        for key, value in values.items()
        if not isinstance(value, Mapping | list)
    )
    return f"<table>{''.join(rows)}</table>"


def section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def wide_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a heading; it scrolls within itself where the page is narrow."""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class=scroll><table class=wide><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


REPORT_TITLE = "<title>ifsq-train report</title>"
"""Near the beginning of every page, by which one is known."""


def page(
    body: str, subtitle: str = "From images to a tokenizer, token shards, a generator and samples."
) -> str:
    """The whole HTML document; it makes no request."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta http-equiv=Content-Security-Policy content="default-src &#39;none&#39;;'
        ' img-src data:; style-src &#39;unsafe-inline&#39;">'
        f"{REPORT_TITLE}<style>{STYLE}</style></head><body><main>"
        f"<header><h1>ifsq-train report</h1><p class=note>{escape(subtitle)}</p></header>"
        f"{body}</main></body></html>\n"
    )


STYLE = """
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
.images.even{display:grid;grid-template-columns:repeat(10,minmax(0,var(--side)))}
.images.even img{width:100%}
.scroll{overflow-x:auto}.scroll table{max-width:none}
.wide td,.wide thead th{padding-right:16px;white-space:nowrap;text-align:left}
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
@media(max-width:600px){.wide td{white-space:normal;overflow-wrap:anywhere}
.images{--side:48px;gap:4px}.images.large{--side:96px}
.images.even{grid-template-columns:repeat(5,minmax(0,var(--side)))}
.row{grid-template-columns:56px 1fr;font-size:13px}}
th{color:var(--quiet);padding-right:16px}
td{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
""".strip()
