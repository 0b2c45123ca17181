"""Fills the page of recipes from the recipes themselves when the site is built (mkdocs hook)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ifsq_train.config.load import RECIPE_FOLDER, list_recipes

MARK = "<!-- recipes -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with tables in the place of the mark."""
    return markdown.replace(MARK, "\n".join(table_lines())) if MARK in markdown else markdown


def table_lines() -> Iterator[str]:
    """A table for each folder of recipes: name, what it is, and what its header says further."""
    folders: dict[str, list[str]] = {}
    for name, summary in list_recipes():
        header = header_of(RECIPE_FOLDER / f"{name}.yaml")
        cells = (f"`{name}`", summary, header.get("Hardware", ""), header.get("Expected", ""))
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        folders.setdefault(name.rpartition("/")[0], []).append(f"| {row} |")
    for folder, rows in folders.items():
        yield from ("", f"## {folder}", "")
        yield from ("| Recipe | What | Hardware | Expected |", "|---|---|---|---|", *rows)


def header_of(path: Path) -> dict[str, str]:
    """The ``Key: text`` lines of the comment a recipe begins with; texts may go over lines."""
    found: dict[str, str] = {}
    key = ""
    for line in path.read_text().splitlines()[1:]:
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").rstrip()
        before, colon, after = text.partition(": ")
        if colon and before.isalpha() and before[0].isupper():
            key = before
            found[key] = after.strip()
        elif text and key:
            found[key] += f" {text}"
        else:
            key = ""
    return found
