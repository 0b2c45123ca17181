"""Every `ifsq` command that a page or a message names exists, with every option named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer

from launchers.cli.program import app
from tests.support.repository import REPOSITORY

PAGES = sorted(
    path
    for place in (REPOSITORY / "docs", REPOSITORY / "k8s", REPOSITORY)
    for path in (place.glob("*.md") if place == REPOSITORY else place.rglob("*.md"))
    if path.name != "CHANGELOG.md"  # which names commands as they once were
)
SOURCES = sorted(
    path
    for package in ("data_pipelines", "ifsq_train", "launchers")
    for path in (REPOSITORY / package).rglob("*.py")
)
PLACEHOLDER = re.compile(r"\.\.\.|<.*>|\{.*\}|\[.*|[A-Z][A-Z0-9_|-]*|.*[,|].*")


def named(path: Path) -> Iterator[list[str]]:
    """Words after `ifsq` of every command in inline code, and of those in blocks of a page."""
    text = path.read_text()
    for match in re.finditer(r"(?<!`)`ifsq ([^`\n]+)`", text):
        yield match[1].split()
    if path.suffix == ".md":
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("ifsq "):
                    yield line.split(" #")[0].split()[1:]


@cache
def whole_program() -> Any:
    return typer.main.get_command(app)


def fault(words: list[str]) -> str | None:
    """What of a command is not there; None if it is all there."""
    command, rest = whole_program(), list(words)
    while rest and hasattr(command, "commands"):
        if PLACEHOLDER.fullmatch(rest[0]) or rest[0].startswith("-"):
            return None
        found = command.commands.get(rest[0])
        if found is None:
            return f"no command `{rest[0]}`"
        command, rest = found, rest[1:]
    known = {option for param in command.params for option in param.opts + param.secondary_opts}
    for word in rest:
        if word == "--":
            break
        option = re.match(r"\[?(--[a-z][a-z-]*)", word)
        if option and option[1] not in known | {"--help"}:
            return f"`{command.name}` has no {option[1]}"
    return None


def test_commands_of_pages_and_in_messages_exist() -> None:
    wrong = [
        (path.relative_to(REPOSITORY).as_posix(), " ".join(words), why)
        for path in [*PAGES, *SOURCES]
        for words in named(path)
        if (why := fault(words))
    ]
    assert wrong == []


def test_a_command_that_is_not_there_is_found() -> None:
    assert fault(["fly", "x"]) == "no command `fly`"
    assert fault(["data", "fly"]) == "no command `fly`"
    assert fault(["jobs", "--cleaned"]) == "`jobs` has no --cleaned"
    assert fault(["shell", "JOB", "[--rank", "N]"]) is None
    assert fault(["shell", "JOB", "--", "ls", "--all"]) is None
