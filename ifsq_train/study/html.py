"""A report's Markdown as one self-contained page: headings, tables, lists and inline plots."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:0 auto;padding:24px 16px;"
    "color:#1d1f21;background:#fff}table{border-collapse:collapse;font-size:13px;margin:12px 0}"
    "th,td{text-align:left;padding:4px 8px;border-bottom:1px solid #ddd;vertical-align:top}"
    "pre,code{background:#f3f3f0;padding:2px 4px}svg{max-width:100%;height:auto}"
)


def html_page(title: str, text: str, plots: Mapping[str, str]) -> str:
    """The page; it makes no request.

    Args:
        title: of the window.
        text: Markdown of a report, without images.
        plots: SVG by title, shown at the end.
    """
    blocks = (_block(block) for block in text.strip().split("\n\n"))
    drawings = "".join(f"<figure>{svg}</figure>" for svg in plots.values())
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "".join(blocks)
        + drawings
        + "</body></html>\n"
    )


def _block(block: str) -> str:
    lines = block.splitlines()
    heading = re.match(r"(#+) (.*)", lines[0])
    if heading:
        level = len(heading[1])
        return f"<h{level}>{_inline(heading[2])}</h{level}>"
    if lines[0].startswith("```"):
        return "<pre>" + escape("\n".join(lines[1:-1])) + "</pre>"
    if lines[0].startswith("|"):
        rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]
        return f"<table>{_row(rows[0], 'th')}{''.join(_row(row, 'td') for row in rows[2:])}</table>"
    if lines[0].startswith("- "):
        items = (f"<li>{_inline(line[2:])}</li>" for line in lines)
        return f"<ul>{''.join(items)}</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _row(cells: Iterable[str], tag: str) -> str:
    inner = "".join(f"<{tag}>{_inline(cell.strip())}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def _inline(text: str) -> str:
    text = escape(text.replace("\\|", "|"), quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
