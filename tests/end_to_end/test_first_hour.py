"""What a newcomer does in the first hour: relative paths, own folders, changed recipes.

Everything goes through the real command, in a folder of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launchers.cli import program
from launchers.on_ray.cluster import ray_session
from tests.support.image_folders import write_photos

RECIPES = {
    "tokenizer": """
kind: train
name: tokenizer
output: runs/tokenizer
steps: 4
data:
  kind: images
  url: datasets/mine
  view: {kind: adm_center, image_size: 16}
  global_batch_size: 4
task:
  kind: tokenizer
  model:
    quantizer: {kind: ifsq, levels: [5, 5, 5]}
    channel_multipliers: [1, 2]
    base_channels: 8
    num_res_blocks: 1
    norm_groups: 4
  adversarial: null
optim:
  autoencoder: {lr: 1.0e-3}
strategy: {kind: torch}
log_every_steps: 1
""",
    "tokens": """
kind: precompute
source: datasets/mine
tokenizer: runs/tokenizer
output: runs/tokens
view: {kind: adm_center, image_size: 16}
samples_per_shard: 8
batch_size: 4
""",
    "generator": """
kind: train
name: generator
output: runs/generator
steps: 2
data: {kind: tokens, url: runs/tokens, tokenizer: runs/tokenizer, global_batch_size: 4}
task:
  kind: autoregressive
  model: {num_layers: 1, num_heads: 2, dim: 16, num_classes: 3}
optim:
  generator: {lr: 1.0e-3}
strategy: {kind: torch}
""",
    "samples": """
kind: sample
generator: runs/generator
tokenizer: runs/tokenizer
output: runs/samples
samples_per_class: 2
batch_size: 3
format: png
""",
    "evaluation": """
kind: evaluate
tokenizer: runs/tokenizer
data: datasets/mine
view: {kind: adm_center, image_size: 16}
samples: runs/samples
output: runs/evaluation.json
""",
}


@dataclass
class Newcomer:
    """Somebody who types `ifsq ...` in a folder."""

    folder: Path

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command."""
        out, err, code, argv = io.StringIO(), io.StringIO(), 0, sys.argv
        sys.argv = ["ifsq", *arguments]
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                program.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        sys.argv = argv
        return code, out.getvalue(), err.getvalue()

    def does(self, *arguments: str) -> str:
        """Standard output of a command that must succeed."""
        code, out, err = self(*arguments)
        assert code == 0, f"{' '.join(arguments)}:\n{out}{err}"
        return out

    def is_refused(self, *arguments: str) -> str:
        """Error lines of a command that must be refused with exit code 2 and no traceback."""
        code, out, err = self(*arguments)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2, out + err
        assert lines, err
        assert "Traceback" not in err
        return "\n".join(lines)

    def files(self) -> dict[str, bytes]:
        """All files below the folder by name."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}


def _new(folder: Path) -> Newcomer:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    return Newcomer(folder)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray for all commands; its workers run in folders of their own all the same."""
    with ray_session(None, min_cpus=3):
        yield


@pytest.fixture(scope="module")
def done(ray: None, tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    """Every stage, with relative paths, from an empty folder; trained on Ray."""
    newcomer = _new(tmp_path_factory.mktemp("first-hour"))
    write_photos(newcomer.folder / "photos", 24)
    newcomer.does("data", "pack", "photos", "datasets/mine", "--shard-megabytes", "0.02")
    newcomer.does("train", "tokenizer.yaml")
    newcomer.does("precompute", "tokens.yaml")
    newcomer.does("train", "generator.yaml", "--launcher", "local")
    newcomer.does("sample", "samples.yaml")
    newcomer.does("evaluate", "evaluation.yaml")
    return newcomer


# ---------------------------------------------------------------- relative paths


def test_relative_paths_are_below_the_folder_one_stands_in(done: Newcomer) -> None:
    there = {name.partition("/")[0] for name in done.files()}
    assert there == {"photos", "datasets", "runs", *(f"{name}.yaml" for name in RECIPES)}
    assert json.loads((done.folder / "runs/tokenizer/result.json").read_bytes())["steps"] == 4
    assert (done.folder / "runs/evaluation.json").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("data", "info", "datasets/mine"),
        ("data", "verify", "runs/tokens"),
        ("data", "preview", "tokenizer.yaml", "--output", "batch.png"),
        ("data", "preview", "datasets/mine", "--output", "images.png"),
        ("plan", "generator.yaml", "--gpus-per-node", "2"),
        ("precompute", "tokens.yaml", "--verify", "2"),
        ("checkpoint", "info", "runs/tokenizer"),
        ("checkpoint", "export", "runs/tokenizer", "weights"),
    ],
)
def test_every_command_takes_relative_paths(done: Newcomer, command: tuple[str, ...]) -> None:
    done.does(*command)


def test_lists_of_datasets_and_actors_take_relative_paths(done: Newcomer) -> None:
    mix = "data.mix=[{url: datasets/mine, weight: 2}, {url: ./datasets/mine, weight: 1}]"
    done.does("train", "tokenizer.yaml", "data.url=null", mix, "output=mixed", "steps=1")
    done.does("sample", "samples.yaml", "output=drawn", "--actors", "1", "format=npz")
    assert (done.folder / "drawn" / "samples.npz").is_file()
    assert (done.folder / "mixed" / "result.json").is_file()
    done.does("data", "pack", "photos", "again", "--workers", "1")
    done.does("submit", "evaluation.yaml", "output=submitted.json", "--to", "local")
    assert (done.folder / "submitted.json").is_file()
