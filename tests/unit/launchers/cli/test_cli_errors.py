"""What a user can mend is one clear line and exit code 2, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ifsq_train.precompute.job import run_precompute_local
from launchers.cli import program as cli
from tests.support.precompute_parts import configure, make_parts, write_tokenizer

GENERATOR = ["demo/generator", "steps=2", "task.model.num_layers=1"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Dataset, tokenizer and token shards."""
    made = make_parts(tmp_path_factory.mktemp("cli"))
    tokens = Path(made["source"]).parent / "tokens"
    run_precompute_local(configure(made, tokens), device="cpu")
    return made | {"tokens": str(tokens)}


class Command:
    """Runs `ifsq` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Exit code and what was said on standard error."""
        self._monkeypatch.setattr(sys, "argv", ["ifsq", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, self._capsys.readouterr().err

    def refusal(self, *arguments: str) -> str:
        """The one line of a refused command."""
        code, said = self(*arguments)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), said
        assert "Traceback" not in said
        return errors[0]


@pytest.fixture
def ifsq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return Command(monkeypatch, capsys)


def test_unknown_key(ifsq: Command) -> None:
    line = ifsq.refusal("train", "demo/tokenizer", "task.model.quantizer.alfa=1.6")
    assert "task.model.quantizer.alfa: unknown key; did you mean 'alpha'?" in line


def test_wrong_type(ifsq: Command) -> None:
    line = ifsq.refusal("config", "validate", "demo/tokenizer", "steps=many")
    assert "steps: found 'many'" in line


def test_all_faults_of_a_recipe_at_once(ifsq: Command) -> None:
    code, said = ifsq("config", "validate", "demo/tokenizer", "steps=0", "seed=-1", "nonsense=1")
    assert code == 2
    assert len(said.splitlines()) == 3


def test_unknown_recipe(ifsq: Command) -> None:
    assert "did you mean 'demo/tokenizer'?" in ifsq.refusal("train", "demo/tokeniser")


def test_recipe_of_another_command(ifsq: Command) -> None:
    assert "use `ifsq precompute`" in ifsq.refusal("train", "demo/tokens")


def test_missing_data_folder(ifsq: Command, tmp_path: Path) -> None:
    line = ifsq.refusal("data", "pack", str(tmp_path / "none"), str(tmp_path / "out"))
    assert "does not exist" in line
    assert not (tmp_path / "out").exists()


def test_missing_dataset(ifsq: Command, tmp_path: Path) -> None:
    line = ifsq.refusal(
        "train", "demo/tokenizer", f"data.url={tmp_path / 'none'}", f"output={tmp_path / 'run'}"
    )
    assert "none" in line


def test_folder_without_images(ifsq: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "note.txt").write_text("no image")
    line = ifsq.refusal("data", "pack", str(tmp_path / "empty"), str(tmp_path / "out"))
    assert "holds no images; allowed are" in line


def test_truncated_image_is_left_out_and_named(
    ifsq: Command, parts: dict[str, Any], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(Path(parts["source"]).parent / "images", images)
    victim = sorted(images.rglob("*.jpg"))[3]
    victim.write_bytes(victim.read_bytes()[:-200])
    code, _ = ifsq("data", "pack", str(images), str(tmp_path / "out"), "--max-bad-samples", "1")
    assert code == 0
    assert victim.name in (tmp_path / "out" / "quarantine.jsonl").read_text()

    line = ifsq.refusal(
        "data", "pack", str(images), str(tmp_path / "out2"), "--max-bad-samples", "0"
    )
    assert victim.name in line


def test_batch_that_does_not_divide(ifsq: Command, parts: dict[str, Any], tmp_path: Path) -> None:
    line = ifsq.refusal(
        "train", *GENERATOR, f"data.url={parts['tokens']}", f"data.tokenizer={parts['tokenizer']}",
        f"output={tmp_path / 'run'}", "data.global_batch_size=15", "--workers", "2",
    )  # fmt: skip
    assert "data.global_batch_size=15 is not divisible by the 2 workers; use 14 or 16" in line


def test_tokens_of_another_tokenizer(ifsq: Command, parts: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "other", seed=1)
    line = ifsq.refusal(
        "train", *GENERATOR, f"data.url={parts['tokens']}",
        f"data.tokenizer={tmp_path / 'other'}", f"output={tmp_path / 'run'}",
        "data.global_batch_size=4", "--workers", "2",
    )  # fmt: skip
    assert "holds tokens of tokenizer" in line


def test_half_written_checkpoint(ifsq: Command, parts: dict[str, Any], tmp_path: Path) -> None:
    half = tmp_path / "tokenizer"
    shutil.copytree(parts["tokenizer"], half)
    (half / "checkpoints" / "step-00000001" / "checkpoint.json").unlink()
    line = ifsq.refusal("checkpoint", "info", str(half / "checkpoints" / "step-00000001"))
    assert "half-written checkpoint" in line
    line = ifsq.refusal(
        "precompute", "demo/tokens", f"tokenizer={half}", f"source={parts['source']}",
        f"output={tmp_path / 'tokens'}", "view={kind: adm_center, image_size: 16}",
    )  # fmt: skip
    assert "no complete checkpoint" in line


def test_nothing_is_a_dataset(ifsq: Command, tmp_path: Path) -> None:
    assert "holds no dataset" in ifsq.refusal("data", "info", str(tmp_path))


def test_verify_names_damage_with_exit_code_1(
    ifsq: Command, parts: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(parts["source"], tmp_path / "dataset")
    tar = tmp_path / "dataset" / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert ifsq("data", "verify", parts["source"])[0] == 0
    assert ifsq("data", "verify", str(tmp_path / "dataset"))[0] == 1


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom launchers import cli\nsys.argv = ['ifsq', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'deepspeed', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
