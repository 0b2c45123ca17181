"""Pictures of the dashboards, laid out by their JSON, drawn from a running Prometheus.

    python -m tests.benchmarks.monitoring.pictures --prometheus http://127.0.0.1:9090 \
        --begin 1790000000 --end 1790000600 --to docs/images

No Grafana is needed: each panel stands where its `gridPos` says (24 columns, 38 pixels a row), with
its title, unit, legend, thresholds and words for values; Chromium makes the picture. What Grafana
draws differs in details (fonts, the choice of axis ticks, hovering), not in what is where.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import re
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.repository import REPOSITORY

DASHBOARDS = REPOSITORY / "k8s" / "dashboards"
WIDTH, ROW, GAP = 1200, 30, 8
COLOURS = ["#73BF69", "#F2CC0C", "#5794F2", "#FF9830", "#F2495C", "#B877D9", "#8AB8FF", "#C0D8FF"]
NAMED = {"green": "#73BF69", "yellow": "#FADE2A", "red": "#F2495C", "blue": "#5794F2"}
STYLE = """
body{margin:0;background:#111217;font:12px Inter,Helvetica,Arial,sans-serif;color:#ccccdc}
h1{font-size:16px;font-weight:500;margin:8px 12px;height:22px}
.panel{position:absolute;background:#181b1f;border:1px solid #24262b;border-radius:2px;
 overflow:hidden;box-sizing:border-box}
.title{font-size:12px;font-weight:500;padding:5px 8px 3px}
.row{position:absolute;font-size:13px;font-weight:500;padding:6px 4px;box-sizing:border-box}
.numbers{display:flex;justify-content:space-evenly;align-items:center;height:70%}
.number{text-align:center;font-size:24px;font-weight:500}
.number div{font-size:10px;color:#9a9aa8}
table{font-size:10px;width:calc(100% - 16px);margin:0 8px;border-collapse:collapse}
td{padding:0 2px;white-space:nowrap;overflow:hidden;max-width:260px}td:last-child{text-align:right}
.empty{text-align:center;color:#7b7b89;padding-top:20px}
"""
_STEPS = {
    "bytes": (1024.0, ["B", "KiB", "MiB", "GiB", "TiB"]),
    "decmbytes": (1000.0, ["MB", "GB", "TB"]),
    "Bps": (1000.0, ["B/s", "kB/s", "MB/s", "GB/s"]),
    "hertz": (1000.0, ["Hz", "kHz", "MHz", "GHz"]),
    "short": (1000.0, ["", " K", " Mil", " Bil"]),
    "reqps": (1000.0, [" req/s", "K req/s"]),
    "rowsps": (1000.0, [" rows/s", "K rows/s"]),
    "bits": (1000.0, ["b", "kb"]),
}
_SUFFIXES = {"celsius": " °C", "watt": " W", "percent": "%"}
Point = tuple[float, float]
Series = tuple[str, list[Point]]
Ask = Callable[[str, float, float], list[dict[str, Any]]]
"""Range query: expression, begin, end -> Prometheus' series."""


def digits(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def in_unit(value: float, unit: str) -> str:
    """A value as Grafana writes it."""
    if math.isnan(value):
        return "NaN"
    if unit == "percentunit":
        return f"{digits(value * 100)}%"
    if unit == "s":
        for size, name in ((86400, "days"), (3600, "hours"), (60, "mins"), (1, "s")):
            if abs(value) >= size:
                return f"{digits(value / size)} {name}"
        return f"{digits(value * 1000)} ms"
    if unit in _STEPS:
        base, names = _STEPS[unit]
        index = 0
        while abs(value) >= base and index < len(names) - 1:
            value, index = value / base, index + 1
        return f"{digits(value)}{' ' if names[index][:1].isalpha() else ''}{names[index]}"
    return f"{value:.4g}{_SUFFIXES.get(unit, '')}"


def colour_of(value: float, steps: list[dict[str, Any]]) -> str:
    """Of the highest threshold that is reached; the first has no value."""
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    name = str(reached[-1]["color"]) if reached else "green"
    return NAMED.get(name, name)


def series_of(panel: dict[str, Any], ask: Ask, begin: float, end: float) -> list[Series]:
    """What a panel shows: legend and points of every series of its queries."""
    found: list[Series] = []
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "30s")
        query = query.replace("$namespace", ".*").replace("($run)", "(.*)").replace("$run", ".*")
        for series in ask(query, begin, end):
            labels = series["metric"]
            legend = re.sub(
                r"{{(\w+)}}",
                lambda match, labels=labels: str(labels.get(match[1], "")),
                target["legendFormat"],
            )
            points = [(float(when), float(value)) for when, value in series["values"]]
            found.append((legend.strip(), points))
    return found


def draw_numbers(panel: dict[str, Any], series: list[Series]) -> str:
    """A stat panel: the last value of each series, coloured by thresholds or words."""
    defaults = panel["fieldConfig"]["defaults"]
    words = {
        key: word for part in defaults.get("mappings", []) for key, word in part["options"].items()
    }
    parts = []
    for legend, points in series[:4]:
        value = points[-1][1]
        word = words.get(f"{value:g}")
        text = word["text"] if word else in_unit(value, defaults["unit"])
        colour = NAMED.get(word["color"]) if word else None
        colour = colour or colour_of(value, defaults["thresholds"]["steps"])
        name = f"<div>{html.escape(legend)}</div>" if len(series) > 1 else ""
        parts.append(f'<div class=number style="color:{colour}">{name}{html.escape(text)}</div>')
    return f"<div class=numbers>{''.join(parts)}</div>"


def draw_curves(
    panel: dict[str, Any], series: list[Series], begin: float, end: float, size: tuple[int, int]
) -> str:
    """A time series panel with its axes and the legend table below."""
    defaults = panel["fieldConfig"]["defaults"]
    shown = series[:5]
    width, height = size[0] - 16, size[1] - 26 - 15 * len(shown) - 6
    left, bottom = 62, 18
    values = [value for _, points in shown for _, value in points if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    low, high = min(low, defaults.get("min", low)), max(high, defaults.get("max", high))
    high = high if high > low else low + (abs(low) or 1.0)
    across = (width - left - 6) / max(end - begin, 1e-9)
    up = (height - bottom - 8) / (high - low)

    def place(point: Point) -> str:
        x, y = left + (point[0] - begin) * across, height - bottom - (point[1] - low) * up
        return f"{x:.1f},{y:.1f}"

    lines = []
    for index in range(4):
        value = low + (high - low) * index / 3
        y = height - bottom - (value - low) * up
        lines.append(f'<line x1={left} x2={width} y1={y:.1f} y2={y:.1f} stroke="#2c2f36"/>')
        label = html.escape(in_unit(value, defaults["unit"]))
        lines.append(f"<text x={left - 5} y={y + 3:.1f} text-anchor=end>{label}</text>")
    for index in range(5):
        when = begin + (end - begin) * (index + 0.5) / 5
        label = time.strftime("%H:%M:%S", time.gmtime(when))
        x = left + (when - begin) * across
        lines.append(f"<text x={x:.0f} y={height - 4} text-anchor=middle>{label}</text>")
    rows = []
    for number, (legend, points) in enumerate(shown):
        colour = COLOURS[number % len(COLOURS)]
        for piece in pieces([point for point in points if math.isfinite(point[1])]):
            path = " ".join(place(point) for point in piece)
            lines.append(f'<polyline points="{path}" fill=none stroke="{colour}"/>')
        last = html.escape(in_unit(points[-1][1], defaults["unit"]))
        dash = f'<span style="color:{colour}">&#9644;</span>'
        rows.append(f"<tr><td>{dash} {html.escape(legend)}</td><td>{last}</td></tr>")
    font = 'font-size="9" fill="#9a9aa8"'
    svg = f'<svg width={width} height={height} style="margin:0 8px" {font}>{"".join(lines)}</svg>'
    return f"{svg}<table>{''.join(rows)}</table>"


def pieces(points: list[Point]) -> list[list[Point]]:
    """Points without holes between them: Grafana draws no line where nothing was measured."""
    steps = [after[0] - before[0] for before, after in pairwise(points)]
    found = [points[:1]]
    for step, point in zip(steps, points[1:], strict=True):
        if step > 1.5 * min(steps):
            found.append([])
        found[-1].append(point)
    return found


def page(board: dict[str, Any], ask: Ask, begin: float, end: float) -> tuple[str, int]:
    """A dashboard as HTML, and its height in pixels."""
    column, top = WIDTH / 24, 40
    parts, bottom = [], 0
    for panel in board["panels"]:
        place = panel["gridPos"]
        x, y = round(place["x"] * column) + GAP // 2, top + place["y"] * (ROW + GAP)
        size = round(place["w"] * column) - GAP, place["h"] * (ROW + GAP) - GAP
        bottom = max(bottom, y + size[1] + GAP)
        box = f'style="left:{x}px;top:{y}px;width:{size[0]}px;height:{size[1]}px"'
        title = html.escape(panel["title"])
        if panel["type"] == "row":
            parts.append(f"<div class=row {box}>&#8964; {title}</div>")
            continue
        series = [found for found in series_of(panel, ask, begin, end) if found[1]]
        if not series:
            inside = "<div class=empty>No data</div>"
        elif panel["type"] == "stat":
            inside = draw_numbers(panel, series)
        else:
            inside = draw_curves(panel, series, begin, end, size)
        parts.append(f"<div class=panel {box}><div class=title>{title}</div>{inside}</div>")
    heading = f"<h1>{html.escape(board['title'])}</h1>"
    text = f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{heading}{''.join(parts)}"
    return text, bottom + GAP


def photograph(text: str, height: int, path: Path) -> None:
    """A picture of a page, in few colours to stay small.

    Raises:
        RuntimeError: there is no Chromium.
    """
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise RuntimeError("pictures need chromium on PATH")
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_text(text)
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        command += [f"--window-size={WIDTH},{height}", source.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
        Image.open(shot).convert("RGB").quantize(128).save(path, optimize=True)


def asking(address: str, points: int = 120) -> Ask:
    """Range queries of a Prometheus."""

    def ask(query: str, begin: float, end: float) -> list[dict[str, Any]]:
        step = max(1.0, (end - begin) / points)
        values = {"query": query, "start": begin, "end": end, "step": step}
        url = f"{address}/api/v1/query_range?{urllib.parse.urlencode(values)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]["result"]

    return ask


def draw_all(address: str, begin: dict[str, float], end: float, folder: Path) -> list[Path]:
    """A picture of every dashboard with panels of metrics.

    Args:
        address: of Prometheus.
        begin: first second shown, by the dashboard's file name; `training` for all others.
        end: last second shown.
        folder: gets ``dashboard-NAME.png``.
    """
    made = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text())
        if not any(panel.get("targets") for panel in board["panels"]):
            continue
        since = begin.get(path.stem, begin["training"])
        text, height = page(board, asking(address), since, end)
        made.append(folder / f"dashboard-{path.stem}.png")
        photograph(text, height, made[-1])
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prometheus", required=True)
    parser.add_argument("--begin", type=float, required=True)
    parser.add_argument("--end", type=float, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    draw_all(options.prometheus, {"training": options.begin}, options.end, options.to)


if __name__ == "__main__":
    main()
