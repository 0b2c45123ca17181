"""Files that are not what they should be, through the real command: one line, exit code 2.

A larger sweep of the same kind is run by hand; these stand for its classes.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launchers.cli import program
from tests.support.image_folders import write_photos

Ifsq = Callable[..., str]

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
YAMLS = {
    "a bomb of aliases": BOMB,
    "nested": "[" * 5000,
    "nested mappings": "{a: " * 5000,
    "holds itself": "a: &a [*a]",
    "key twice": "kind: train\nkind: train\n",
    "digits": "a: " + "1" * 5000,
    "python": "!!python/object/apply:os.system ['x']",
    "no end": "a: [",
    "no date": "a: 2020-99-99",
    "no bool": "a: !!bool 7",
    "unhashable": "? [a]\n: b",
    "two": "--- 1\n--- 2",
    "nul": "a: x\0b",
    "list": "- 1",
    "number": "5",
    "not text": b"\xff\xfe\xff",
    "picture": b"\x89PNG\r\n\x1a\n\0\1",
    "large": "a: b\n" * 400_000,
}
CLASS_MAPS = {
    "empty.txt": "",
    "picture.txt": b"\x89PNG\r\n\x1a\n\0\1\2",
    "nul.txt": "class0\0\nclass1\n",
    "latin.txt": b"caf\xe9\n",
    "twice.txt": "class0\nclass0\n",
    "few.txt": "class0\n",
    "nested.json": "[" * 100_000,
    "objects.json": '{"a":' * 100_000,
    "number.json": "5",
    "null.json": "[null]",
    "negative.json": '{"class0": -1, "class1": 0}',
    "infinite.json": '{"class0": 1e999}',
    "nan.json": '{"class0": NaN}',
    "digits.json": '{"class0": ' + "1" * 6000 + "}",
    "text digits.json": '{"class0": "' + "1" * 6000 + '"}',
    "twice.json": '{"class0": 0, "class0": 1}',
    "surrogate.json": '["\\ud800", "class1"]',
    "many.json": "[" + '"a",' * 5_000_000 + '"a"]',
}
KUBECONFIGS = {
    "contexts": "contexts: 5",
    "context": "contexts:\n- name: x\n",
    "names": "contexts:\n- name: [x]\n  context: {}\n",
    "server": "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"
    "clusters: [{name: c, cluster: {server: 5}}]\nusers: [{name: u, user: {token: t}}]\n",
    "namespace": "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u, "
    "namespace: 5}}]\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n"
    "users: [{name: u, user: {token: t}}]\n",
    "proxy": "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"
    "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1', proxy-url: 'no://x'}}]\n"
    "users: [{name: u, user: {token: t}}]\n",
    "login": "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"
    "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n"
    "users: [{name: u, user: {auth-provider: {name: gcp}}}]\n",
}


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ifsq:
    """Runs a command in a folder of its own that must be refused; its line of error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ifsq", *arguments])
        with pytest.raises(SystemExit) as ended:
            program.main()
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert ended.value.code == 2, said
        assert len(errors) == 1, said
        assert "Traceback" not in said
        assert len(errors[0]) < 2000
        return errors[0]

    return call


def write(path: str, content: str | bytes) -> None:
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_that_is_none(refused: Ifsq, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for file in ("recipe.yaml", "profile.yaml", "kubeconfig"):
        write(file, YAMLS[name])
    assert "recipe.yaml" in refused("train", "recipe.yaml", "--launcher", "local")
    job = ("demo", "--image", "x", "--storage", "claim", "--dry-run")
    assert "profile.yaml" in refused("submit", *job, "--profile", "profile.yaml")
    monkeypatch.setenv("KUBECONFIG", "kubeconfig")
    refused("jobs")
    write(".ifsq.yaml", YAMLS[name])
    assert ".ifsq.yaml" in refused("jobs")


def test_references_of_references_are_bounded(refused: Ifsq) -> None:
    doubled = "".join(f"k{i}: ${{k{i + 1}}}${{k{i + 1}}}\n" for i in range(40))
    write("recipe.yaml", f"kind: train\n{doubled}k40: x\n")
    assert "write it out" in refused("config", "validate", "recipe.yaml")


@pytest.mark.parametrize("name", KUBECONFIGS)
def test_kubeconfigs_that_are_none(
    refused: Ifsq, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write("kubeconfig", KUBECONFIGS[name])
    monkeypatch.setenv("KUBECONFIG", "kubeconfig")
    assert "kubeconfig" in refused("jobs")


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_class_maps_that_are_none(refused: Ifsq, tmp_path: Path, name: str) -> None:
    write_photos(tmp_path / "photos", 4)
    write(name, CLASS_MAPS[name])
    refused("data", "pack", "photos", "packed", "--class-map", name)
    assert not (tmp_path / "packed" / "manifest.json").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "nothing"])
def test_places_that_are_no_files(refused: Ifsq, tmp_path: Path, kind: str) -> None:
    write_photos(tmp_path / "photos", 4)
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind != "nothing":
        place.symlink_to("/dev/zero" if kind == "device" else "place")
    refused("data", "pack", "photos", "packed", "--class-map", "place")
    refused("train", "place", "--launcher", "local")
    refused("compare", "place")
    refused("checkpoint", "import", "place", "run", "--recipe", "demo/tokenizer")
    refused("evaluate", "demo/evaluation", "data=place")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    from data_pipelines.images.packing.pack import pack_folder

    pack_folder(write_photos(folder / "photos", 6), folder / "packed")
    return folder / "packed"


@pytest.mark.parametrize("seed", range(20))
def test_mutated_datasets(refused: Ifsq, packed: Path, tmp_path: Path, seed: int) -> None:
    """One of the files of a dataset mutated: whatever opens, verifies as damaged."""
    shutil.copytree(packed, tmp_path / "packed")
    draw = random.Random(seed)
    files = sorted(p for p in (tmp_path / "packed").rglob("*") if p.is_file())
    path = draw.choice([p for p in files if p.name != "ifsq-output.json"])
    data = bytearray(path.read_bytes())
    how = draw.choice(["cut", "flip", "empty", "zeros", "text"])
    if how == "flip" and path.name == "manifest.json":
        how = "cut"  # what packing notes beside the sealed facts may change
    if how == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    changed = {"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}
    path.write_bytes(changed.get(how, data) if how != "text" else b'{"a": [1')
    sys.argv = ["ifsq", "data", "verify", "packed"]
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code in (1, 2), (path.name, how)
