"""Small charts as inline SVG for the report; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

Curve = Sequence[tuple[int, float]]
_LARGEST = 1e300
"""What differences can still be taken of; NaN is below nothing, either."""


def charts(drawn: Sequence[str]) -> str:
    """Charts side by side, as many as fit."""
    return f"<div class=charts>{''.join(drawn)}</div>"


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers within [low, high]."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, curve: Curve, note: str = "") -> str:
    """One value over steps, explained by `note`; values that are not finite leave a gap."""
    finite = [(step, value) for step, value in curve if abs(value) < _LARGEST]
    if not finite:
        return _chart_frame(title, "no values", "")
    steps, values = [s for s, _ in finite], [v for _, v in finite]
    left, right = float(min(steps)), float(max(steps)) or 1.0
    right = right if right > left else left + max(1.0, abs(left) * 1e-6)
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return 44 + 300 * (step - left) / (right - left)

    def y(value: float) -> float:
        return 172 - 158 * (value - low) / (high - low)

    marks = [
        f'<path class=grid d="M44 {y(t):.1f}H344"/><text x=39 y={y(t) + 3.5:.1f}'
        f" text-anchor=end>{t:.4g}</text>"
        for t in _ticks(low, high)
    ]
    marks += [
        f"<text x={x(t):.1f} y=188 text-anchor=middle>{t:.6g}</text>" for t in _ticks(left, right)
    ]
    path, pen = [], "M"
    for step, value in curve:
        if abs(value) < _LARGEST:
            path.append(f"{pen}{x(step):.1f} {y(value):.1f}")
        pen = "L" if abs(value) < _LARGEST else "M"
    marks.append(f'<path class=line d="{"".join(path)}"/>')
    marks.append(f"<circle class=dot cx={x(steps[-1]):.1f} cy={y(values[-1]):.1f} r=3 />")
    last = f"{values[0]:.4g} at step {steps[0]:,}, {values[-1]:.4g} at step {steps[-1]:,}"
    return _chart_frame(title, last, "".join(marks), note)


EXPLANATIONS = {
    "loss": "what is minimized",
    "pixel": "reconstruction error of the pixels",
    "perceptual": "LPIPS distance of reconstructions",
    "adversarial": "generator's adversarial loss: minus the discriminator's verdict on"
    " reconstructions; it starts at adversarial.start_step, and rising means that the"
    " discriminator learns faster than the tokenizer",
    "discriminator": "hinge loss of the discriminator: 1 at chance, 0 when it tells every"
    " reconstruction from its original",
    "code_entropy": "bits per token that the codes of a batch carry; more codes are used when it"
    " is higher",
    "alignment": "REPA term",
    "cross_entropy": "of the next token, in nats, summed over token groups",
}
"""What a curve shows, by the part of its name before a slash."""


def explanation(name: str) -> str:
    """What the curve of this name shows; empty where nothing is known of it."""
    return EXPLANATIONS.get(name.split()[-1].split("/")[0], "")


def padded_histograms(histograms: Sequence[Sequence[float]]) -> np.ndarray:
    """float [channels, most levels] of one list of shares per channel; NaN where one is shorter."""
    table = np.full((len(histograms), max(map(len, histograms))), np.nan)
    for row, shares in zip(table, histograms, strict=True):
        row[: len(shares)] = shares
    return table


def level_charts(histograms: np.ndarray) -> str:
    """Use of levels, float [channels, levels], as bars; NaN marks levels a channel lacks."""
    drawn = [_bar_chart(channel, row) for channel, row in enumerate(np.asarray(histograms, float))]
    note = (
        "Share of latent values on each level, one chart per channel; the dashed line is an"
        " even use of all levels."
    )
    return f"<p class=note>{note}</p>{charts(drawn)}"


def _bar_chart(channel: int, counts: np.ndarray) -> str:
    counts = counts[~np.isnan(counts)]
    total, levels = float(counts.sum()), len(counts)
    if total <= 0:
        return _chart_frame(f"Channel {channel}", "no values", "")
    shares = counts / total
    used = shares[shares > 0]
    entropy = max(0.0, float(-(used * np.log2(used)).sum()))
    top = max(float(shares.max()), 1 / levels) * 1.08
    pitch = 300 / levels
    width = max(pitch * 0.5, min(pitch - 2, 28))
    marks = [
        f'<path class=grid d="M44 {172 - 158 * t / top:.1f}H344"/>'
        f"<text x=39 y={175.5 - 158 * t / top:.1f} text-anchor=end>{100 * t:.3g} %</text>"
        for t in _ticks(0, top)
    ]
    every = math.ceil(levels / 10)
    for level, share in enumerate(shares.tolist()):
        middle, height = 44 + (level + 0.5) * pitch, 158 * share / top
        marks.append(
            f"<rect class=bar x={middle - width / 2:.2f} y={172 - height:.2f} width={width:.2f}"
            f" height={height:.2f}><title>level {level}: {100 * share:.2f} %</title></rect>"
        )
        if level % every == 0:
            marks.append(f"<text x={middle:.1f} y=188 text-anchor=middle>{level}</text>")
    even = 172 - 158 / levels / top
    marks.append(f'<path class=even d="M44 {even:.1f}H344"/>')
    caption = f"{entropy:.2f} of {math.log2(levels):.2f} bits used"
    return _chart_frame(f"Channel {channel}", caption, "".join(marks))


def _chart_frame(title: str, caption: str, marks: str, note: str = "") -> str:
    drawing = (
        f'<svg viewBox="0 0 362 194" role=img aria-label="{escape(title, quote=True)}:'
        f' {escape(caption, quote=True)}"><path class=axis d="M44 172H344"/>{marks}</svg>'
        if marks
        else ""
    )
    explained = f"<p class=note>{escape(note)}</p>" if note else ""
    return (
        f"<figure class=chart><figcaption><b>{escape(title)}</b>"
        f" <span>{escape(caption)}</span></figcaption>{explained}{drawing}</figure>"
    )
