"""No secret comes into a recipe: not from the environment, and not inside a URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from ifsq_train.config import to_dict
from ifsq_train.config.load import load_recipe

RECIPE = "demo/tokenizer"


def test_variables_of_the_project_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFSQ_DATA", "/data/images")
    recipe = load_recipe(RECIPE, ["data.url=${oc.env:IFSQ_DATA}", "name=${oc.env:IFSQ_NO,run}"])
    assert to_dict(recipe)["data"]["url"] == "/data/images"
    assert to_dict(recipe)["name"] == "run"


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:PLANTED}",
        "${oc.env:PLANTED,x}",
        "x${oc.env:${oc.env:IFSQ_WHICH}}",
        "${oc.decode:${oc.env:PLANTED}}",
        "${oc.env:IFSQ_API_KEY}",
    ],
)
def test_other_variables_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for name in ("PLANTED", "IFSQ_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("IFSQ_WHICH", "PLANTED")
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {RECIPE}\nname: {text}\n")
    with pytest.raises(UserError, match=r"\$\{oc.env:\w+\} is not read: .*IFSQ_") as caught:
        load_recipe(str(file))
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unset_variable_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IFSQ_MISSING", raising=False)
    with pytest.raises(UserError, match="IFSQ_MISSING"):
        load_recipe(RECIPE, ["name=${oc.env:IFSQ_MISSING}"])


@pytest.mark.parametrize("key", ["data.url", "output", "name", "steps", "unknown"])
def test_urls_with_credentials_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}: .*may not hold credentials") as caught:
        load_recipe(RECIPE, [f"{key}=https://me:hunter2@example.com/x"])
    assert "hunter2" not in str(caught.value)
