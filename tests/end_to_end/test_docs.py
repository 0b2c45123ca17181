"""The commands of the documentation, run in order in an empty folder as a newcomer would.

Blocks of YAML that begin with ``# name.yaml`` are saved under that name, blocks of bash are run.
Only sizes are made smaller, by overrides that are appended to the command.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ifsq_train.config.load import RECIPE_FOLDER

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALLER = {
    "ifsq train tokenizer.yaml": "steps=12",
    "ifsq train generator.yaml": "steps=6",
    "ifsq sample samples.yaml": "samples_per_class=13",
}
# Installing is what made the environment these tests run in; the demo has a test of its own
# (test_demo.py), with the same function behind both commands.
RUN_ELSEWHERE = ("make ", "pip install", "export PATH", "ifsq demo")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of every block of the page, in order."""
    for match in BLOCK.finditer(page.read_text()):
        yield match[1], match[2]


def commands(text: str) -> Iterator[str]:
    """Commands of a bash block, continued lines joined, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        command = line.split(" #")[0].strip()
        if command and not command.startswith("#"):
            yield command.removeprefix(".venv/bin/")


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As typed in a shell with `ifsq` on the PATH; OMP_NUM_THREADS only keeps two cores calm."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=900
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a machine that is busy otherwise takes minutes per command
def test_every_command_of_the_quickstart_works_in_an_empty_folder(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    for language, text in blocks(REPOSITORY / "docs" / "quickstart.md"):
        if language == "yaml":
            name = text.splitlines()[0].removeprefix("# ")
            assert name.endswith(".yaml"), f"a recipe block must begin with its name: {name}"
            (tmp_path / name).write_text(text)
            continue
        for command in commands(text):
            if command.startswith(RUN_ELSEWHERE):
                continue
            smaller = next((v for k, v in SMALLER.items() if command.startswith(k)), "")
            done = run(f"{command} {smaller}", tmp_path)
            assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "report.html").is_file()
    assert (tmp_path / "runs" / "init" / "data" / "train" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(p.name for p in (REPOSITORY / "docs").glob("*.md"))]
)
def test_every_ifsq_command_of_a_page_has_options_that_exist(page: str) -> None:
    """Subcommands and options of all pages, against the program's own help."""
    place = REPOSITORY / page if page == "README.md" else REPOSITORY / "docs" / page
    for language, text in blocks(place):
        for command in commands(text) if language == "bash" else ():
            for part in re.split(r"\||&&|;", command):
                if part.strip().startswith("ifsq "):
                    check_words(shlex.split(part)[1:], part)


def check_words(words: list[str], shown: str) -> None:
    import typer.main

    from launchers.cli import app

    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        if name.startswith("-"):
            continue
        assert name in command.commands, f"{shown}: no command {name}"  # type: ignore[attr-defined]
        command = command.commands[name]  # type: ignore[attr-defined]
    known = {option for part in command.params for option in [*part.opts, *part.secondary_opts]}
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and option not in ("--help", "--"):
            assert option in known, f"{shown}: {option} is no option; known are {sorted(known)}"


def headers() -> Iterator[tuple[str, str]]:
    for path in sorted(RECIPE_FOLDER.rglob("*.yaml")):
        for line in path.read_text().splitlines():
            if line.startswith("# Command:"):
                yield str(path.relative_to(RECIPE_FOLDER)), line.removeprefix("# Command:").strip()


def test_the_command_of_every_recipe_names_that_recipe_and_is_valid() -> None:
    from ifsq_train.config.load import load_recipe

    found = list(headers())
    assert len(found) > 100
    for recipe, command in found:
        words = shlex.split(command)
        assert words[0] == "ifsq", f"{recipe}: {command}"
        check_words(words[1:], command)
        if Path(recipe).stem.startswith("_"):
            continue
        own = recipe.removesuffix(".yaml")
        assert own in words[2:], f"{recipe}: {command}"
        load_recipe(own, [word for word in words[3:] if "=" in word and word[0] != "-"])
