"""Names, keys, numbers and overrides that nobody means, through the real command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.classes import read_class_map
from launchers.cli import program

Ifsq = Callable[..., list[str]]
BREAKS = ["\n", "\r", "\x85", "\u2028"]
DOUBLED = "${" * 2000 + "a" + "}" * 2000


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ifsq:
    """Runs a command in a folder of its own that must be refused; what it says, by lines."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["ifsq", *arguments])
        with pytest.raises(SystemExit) as ended:
            program.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2, said
        assert "Traceback" not in said
        return said.splitlines()

    return call


@pytest.mark.parametrize("mark", BREAKS)
def test_a_line_break_in_a_name_does_not_break_the_message(refused: Ifsq, mark: str) -> None:
    name = f"a{mark}b.yaml"
    (line,) = refused("config", "validate", name)
    assert repr(mark)[1:-1] in line
    (line,) = refused("data", "info", name)
    assert repr(mark)[1:-1] in line
    Path(name).write_text("kind: [\n")
    (line,) = refused("config", "validate", name)
    assert "not valid YAML" in line


def test_each_fault_is_a_line_whatever_a_key_or_the_path_holds(refused: Ifsq) -> None:
    Path("a\nb.yaml").write_text('extends: demo/tokenizer\n"c\\nd": 1\n"e\\u2028f": 1\n')
    lines = refused("config", "validate", "a\nb.yaml")
    assert [line.partition("unknown")[0] for line in lines] == [
        "error: a\\nb.yaml: c\\nd: ",
        "error: a\\nb.yaml: e\\u2028f: ",
    ]


def test_errors_keep_their_lines_in_other_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(DataError("a\nb", "c")))
    assert type(error) is DataError
    assert str(error) == "a\\nb\nc"
    assert str(UserError()) == ""


@pytest.mark.parametrize(("override", "said"), [
    ("optim.autoencoder.lr=1e999", "finite"), ("optim.autoencoder.lr=.inf", "finite"),
    ("optim.autoencoder.weight_decay=.nan", ""), (f"seed={DOUBLED}", "in each other"),
    ("st\neps=4", "st\\neps: unknown key"), (f"steps={'9' * 299}", "use at most 1000000000000"),
    ("data.global_batch_size=99999999999999999999", "data.global_batch_size: found 99999999999"),
    ("seed=9223372036854775808", "use at most 9223372036854775807"),
    ("data.view.image_size=65536", "1 to 65535 pixels"),
])  # fmt: skip
def test_overrides_that_are_none(refused: Ifsq, override: str, said: str) -> None:
    (line,) = refused("config", "validate", "demo/tokenizer", override)
    assert said in line


def test_more_overrides_and_faults_than_anybody_reads(refused: Ifsq) -> None:
    (line,) = refused("config", "validate", "demo/tokenizer", *[f"k{i}=1" for i in range(3000)])
    assert "at most 250" in line
    lines = refused("config", "validate", "demo/tokenizer", *[f"k{i}=1" for i in range(60)])
    assert len(lines) == 51
    assert "10 more faults" in lines[-1]
    Path("recipe.yaml").write_text(f"kind: train\nseed: {DOUBLED}\n")
    (line,) = refused("config", "validate", "recipe.yaml")
    assert "in each other" in line


@pytest.mark.parametrize(("lines", "names"), [
    ("cat,1\ndog,0", ("dog", "cat")), ("cat | 1\ndog =0", ("dog", "cat")),
    ("a,,1\nb 0", ("b", "a,")), ("cat1\ndog0", ("cat1", "dog0")), ("a 1\nb 2", ("a 1", "b 2")),
    (f"a{' ' * 20_000}b", (f"a{' ' * 20_000}b",)),
    (f"a{' ' * 20_000}0", ("a",)),
])  # fmt: skip
def test_numbers_behind_names(tmp_path: Path, lines: str, names: tuple[str, ...]) -> None:
    """Also in lines of so many spaces that a pattern would look at them for hours."""
    (tmp_path / "map.txt").write_text(lines)
    assert tuple(read_class_map(tmp_path / "map.txt").names) == names


@pytest.mark.parametrize("command", [
    ("train", "demo/tokenizer", "--cpus-per-worker"),
    ("precompute", "demo/tokens", "--gpus-per-actor"),
    ("submit", "demo/generator", "--to", "ray", "--dry-run", "--cpus-per-node"),
    ("monitor", "--terminal", "--seconds"), ("jobs", "--clean", "--older-than-hours"),
    ("plan", "demo/generator", "--peak-tflops"), ("data", "pack", "a", "b", "--shard-megabytes"),
    ("checkpoint", "import", "a", "b", "--latent-multiplier"),
])  # fmt: skip
def test_options_take_finite_numbers(refused: Ifsq, command: tuple[str, ...]) -> None:
    (line,) = refused(*command, "1e999")
    assert line == f"error: {command[-1]}: found inf; give a finite number"
    assert "Usage" in refused(*command, "nan")[0]  # outside every range


def test_names_that_are_no_unicode(refused: Ifsq) -> None:
    name = os.fsdecode(b"\xff\xfe.yaml")
    Path(name).write_text("kind: 5\n")
    (line,) = refused("config", "validate", name)
    assert "\\udcff\\udcfe.yaml" in line


@pytest.mark.parametrize("error", [
    MemoryError("Unable to allocate 336. GiB for an array"), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than ...\nand more"),
])  # fmt: skip
def test_what_does_not_fit_into_memory_is_one_line(
    refused: Ifsq, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("ifsq_train.config.load.list_recipes", fail)
    (line,) = refused("recipes")
    assert "use smaller batches" in line


def test_networks_of_a_billion_layers(refused: Ifsq) -> None:
    (line,) = refused("config", "validate", "demo/generator", "task.model.num_layers=10001")
    assert "num_layers: found 10001" in line


def test_previews_go_to_files_only(refused: Ifsq) -> None:
    from data_pipelines.images.packing.pack import pack_folder
    from tests.support.image_folders import write_photos

    pack_folder(write_photos(Path("photos"), 3), Path("packed"))
    os.mkfifo("pipe")
    for place in ("pipe", ".", "/dev/null"):
        (line,) = refused("data", "preview", "packed", "--image-size", "16", "--output", place)
        assert "no regular file" in line
    assert "Usage" in refused("data", "preview", "packed", "--step", "9" * 30)[0]


def test_codes_and_labels_do_not_overwrite_each_other(refused: Ifsq) -> None:
    from tests.support.hostile_datasets import write_tokens

    write_tokens(Path("tokens"))
    (line,) = refused("data", "export-codes", "tokens", "out", "./out")
    assert "two folders" in line
    assert not Path("out").exists()


def test_weights_that_are_no_files_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "a.pt")
    (tmp_path / "b.safetensors").symlink_to("/dev/zero")
    (tmp_path / "c.pth").mkdir()
    monkeypatch.setattr(sys, "argv", ["ifsq", "weights", "check", str(tmp_path)])
    with pytest.raises(SystemExit):
        program.main()
    assert capsys.readouterr().out.count("no regular file") == 3


def test_curves_that_cannot_be_drawn() -> None:
    from ifsq_train.report.charts import line_chart

    for curve in ([(10**23, 1.0)], [(-5, 1e308), (1, -1e308)], [(1, 0.0), (10**23, 5e-324)]):
        assert "nan" not in line_chart("loss", curve)
