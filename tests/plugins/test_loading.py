"""How plug-ins are found, carried and refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from ifsq_train.artifacts.networks import build_quantizer
from ifsq_train.config import Config, TrainConfig, to_dict
from ifsq_train.config.load import load_recipe, packed_recipe, unpacked, validate_recipe
from ifsq_train.plugins.files import forget_files, load_files, load_packed, packed
from ifsq_train.plugins.registry import forgotten_afterwards
from ifsq_train.training.preflight import RUN_FILES, keep_plugins
from tests.plugins.conftest import HERE

BSQ = {"kind": "bsq", "num_channels": 6}


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    with forgotten_afterwards():
        yield
    forget_files()


def demo(quantizer: dict) -> dict:
    """The demo's tokenizer with another quantizer."""
    values = to_dict(load_recipe("demo/tokenizer"))
    values["task"]["model"]["quantizer"] = quantizer
    return values


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    wanted = r"quantizer\.kind: found 'bsq', allowed 'fsq', 'ifsq', 'vq', 'lfq', 'ae', 'vae'"
    with pytest.raises(UserError, match=wanted):
        validate_recipe(demo(BSQ), "test")
    load_files([HERE / "bsq.py"])
    validate_recipe(demo(BSQ), "test")
    with pytest.raises(UserError, match=r"found 'gone', allowed 'fsq', .*'vae', 'bsq'"):
        validate_recipe(demo({"kind": "gone"}), "test")


def test_files_reach_another_process_as_text() -> None:
    with forgotten_afterwards():
        load_files([HERE / "bsq.py"])
        message, text = packed_recipe(validate_recipe(demo(BSQ), "test")), packed()
    forget_files()
    load_packed("")
    assert unpacked(message, TrainConfig) == validate_recipe(demo(BSQ), "test")
    assert len(text) < 5000
    with pytest.raises(UserError, match="IFSQ_PLUGINS is damaged"):
        load_packed("nonsense")


@pytest.mark.parametrize(("text", "said"), [
    ("raise GeneratorExit", "GeneratorExit"), ("raise SystemExit(0)", "SystemExit: 0"),
    ("class Own(BaseException): pass\nraise Own('a\\nb')", "Own: a b"),
    ("class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute", "no text"),
    ("raise ValueError('x' * 1_000_000)", "xxx"),
])  # fmt: skip
def test_whatever_a_file_raises_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.py").write_text(text)
    with pytest.raises(UserError, match="cannot be run") as caught:
        load_files([tmp_path / "p.py"])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000
    (tmp_path / "p.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_files([tmp_path / "p.py"])


def test_an_installed_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_package.py").write_text((HERE / "bsq.py").read_text())
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    points = "[ifsq.quantizers]\nbsq = their_package:KIND\nlost = their_package:GONE\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    validate_recipe(demo(BSQ), "test")
    with pytest.raises(UserError, match=r"plug-in their-package \(installed\): .*'lost' cannot be"):
        validate_recipe(demo({"kind": "lost"}), "test")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1 +", "cannot be run: SyntaxError"),
        ("import nowhere", "cannot be run: ModuleNotFoundError"),
        ("import sys; sys.exit()", "cannot be run: SystemExit"),
        ("\ufeffx = 1", "declares no kind"),
        ("x = 1", "declares no kind"),
    ],
)
def test_a_file_that_is_no_plug_in_is_refused_in_one_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "idea.py").write_text(text)
    with pytest.raises(UserError, match=complaint) as refused:
        load_files([tmp_path / "idea.py"])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="No such file"):
        load_files([tmp_path / "none.py"])
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(UserError, match="no regular file"):
        load_files([tmp_path / "pipe.py"])


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    own = (HERE / "bsq.py").read_text().replace('Literal["bsq"]', 'Literal["vq"]')
    (tmp_path / "idea.py").write_text(own)
    with pytest.raises(UserError, match="quantizer kind 'vq' is taken by this program; rename it"):
        load_files([tmp_path / "idea.py"])


def test_a_quantizer_nobody_builds_is_refused_and_no_bottleneck_takes_its_place() -> None:
    class NewConfig(Config):
        kind: str = "new"
        num_channels: int = 4

    with pytest.raises(UserError, match="quantizer kind 'new' is unknown; known are fsq, ifsq, vq"):
        build_quantizer(NewConfig())  # type: ignore[arg-type]


def test_a_run_keeps_the_text_of_its_files(tmp_path: Path) -> None:
    keep_plugins(tmp_path)
    assert not list(tmp_path.iterdir())
    load_files([HERE / "bsq.py"])
    keep_plugins(tmp_path)
    kept = tmp_path / "plugins" / "bsq.py"
    assert kept.read_bytes() == (HERE / "bsq.py").read_bytes()
    assert "plugins/*.py" in RUN_FILES, "--overwrite would leave it behind"
