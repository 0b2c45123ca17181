"""Whose folders a study writes into, and what its status makes of a killed driver's notes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from data_pipelines.storage.outputs import MARKER
from ifsq_train.config import StudyConfig
from ifsq_train.study.expand import Expansion, expand
from ifsq_train.study.outputs import claim_pages, claim_results, claim_store, remove_stages
from ifsq_train.study.report import SIGNATURE
from ifsq_train.study.status import RUNNING, read_status, running_note
from ifsq_train.study.store import Store
from launchers.study.run import RunOptions, run_study


def toy(seeds: tuple[int, ...] = (0, 1), levels: int = 5) -> Expansion:
    config = StudyConfig.model_validate(
        {
            "kind": "study",
            "name": "toy",
            "title": "Toy",
            "scale": "none",
            "stages": {"toy": {"kind": "toy", "method": "ifsq", "levels": levels, "draws": 1000}},
            "seeds": seeds,
            "measures": {"error": {"stage": "toy", "key": "error", "label": "e"}},
        }
    )
    return expand(config)


def options(folder: Path, **more: object) -> RunOptions:
    return RunOptions(folder / "store", folder / "results", launcher="local", **more)  # type: ignore[arg-type]


def test_a_run_marks_its_store_and_goes_on_in_it(tmp_path: Path) -> None:
    assert run_study(toy(), options(tmp_path)).done == 2
    marker = json.loads((tmp_path / "store" / MARKER).read_text())
    assert marker["made_by"] == "ifsq study run"
    again = run_study(toy((0, 1, 2)), options(tmp_path))
    assert (again.done, again.reused) == (1, 2)


def test_a_second_study_takes_over_the_stages_it_shares(tmp_path: Path) -> None:
    run_study(toy((0, 1)), options(tmp_path))
    other = expand(toy((1, 2)).config.model_copy(update={"name": "another", "title": "Another"}))
    found = run_study(other, options(tmp_path))
    assert (found.done, found.reused) == (1, 1)


def test_overwrite_runs_the_study_s_own_stages_anew_and_leaves_others(tmp_path: Path) -> None:
    run_study(toy(), options(tmp_path))
    run_study(toy(levels=9), options(tmp_path))
    others = set((tmp_path / "store").glob("toy-*"))
    assert len(others) == 4
    again = run_study(toy(), options(tmp_path, overwrite=True))
    assert (again.done, again.reused) == (2, 0)
    assert set((tmp_path / "store").glob("toy-*")) == others


def test_removal_takes_records_and_their_copies(tmp_path: Path) -> None:
    found = toy()
    run_study(found, options(tmp_path))
    removed = remove_stages(found, Store(tmp_path / "store"), tmp_path / "results")
    assert removed == 2
    assert not list((tmp_path / "results").iterdir())
    assert not list((tmp_path / "store").glob("toy-*"))


@pytest.mark.parametrize("claim", [claim_store, claim_results, lambda f: claim_pages(f, ["a"])])
def test_a_folder_of_somebody_else_is_refused_and_left_alone(claim: object, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(UserError, match=r"is not empty and was not made by .*thesis\.tex"):
        claim(tmp_path)  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        claim(tmp_path / "thesis.tex")  # type: ignore[operator]


def test_a_store_of_an_earlier_release_is_taken_over(tmp_path: Path) -> None:
    run_study(toy(), options(tmp_path))
    (tmp_path / "store" / MARKER).unlink()
    claim_store(tmp_path / "store")
    assert (tmp_path / "store" / MARKER).is_file()
    claim_results(tmp_path / "results")


def test_a_page_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("# Studies: the paper's claims, one by one\n")
    (tmp_path / "ours.md").write_text(f"# Ours\n\n{SIGNATURE}\n")
    claim_pages(tmp_path, ["ours", "new"])
    (tmp_path / "new.md").write_text("# Mine\n")
    with pytest.raises(UserError, match=r"new\.md was not written by `ifsq study report`"):
        claim_pages(tmp_path, ["ours", "new"])


def test_a_killed_driver_s_stages_wait_and_a_living_one_s_run(tmp_path: Path) -> None:
    found, store = toy((0, 1, 2)), Store(tmp_path)
    done, note, _ = found.stages.values()
    store.finish(done, {"error": 0.1}, 40.0, 40.0)
    store.folder(note).mkdir()
    (store.folder(note) / RUNNING).write_bytes(running_note())
    status = read_status(found, store)
    assert (status.by_name["toy"].running, status.by_name["toy"].waiting) == (0, 2)
    assert status.eta_seconds == pytest.approx(80.0)
    with store.locked():
        status = read_status(found, store)
        assert (status.by_name["toy"].running, status.by_name["toy"].waiting) == (1, 1)
        # What the running stage has had already is no part of the time left.
        assert status.eta_seconds is not None
        assert 0 < status.eta_seconds <= 80.0
    (store.folder(note) / RUNNING).write_text(json.dumps({"since": time.time(), "host": "node-7"}))
    assert read_status(found, store).by_name["toy"].running == 1
    (store.folder(note) / RUNNING).write_text("{")
    assert read_status(found, store).by_name["toy"].running == 0
