"""A digest stands for one result: defaults, which are no part of it, stay what they were.

python -m tests.unit.ifsq_train.study.test_digests    # writes defaults.json anew
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from ifsq_train.study.stage import _IGNORED, _IGNORED_OF_DATA, FORMAT_VERSION, StageConfig

GOLDEN = Path(__file__).with_name("defaults.json")


def defaults() -> dict[str, Any]:
    """Default by ``Part.key`` for every option that a stage's recipe may have."""
    return dict(_defaults())


def _defaults() -> Iterator[tuple[str, Any]]:
    for stage in get_args(StageConfig):
        schema = TypeAdapter(stage).json_schema()
        parts = {stage.__name__: schema, **schema.get("$defs", {})}
        for name, part in parts.items():
            for key, value in part.get("properties", {}).items():
                if "default" in value and key not in (*_IGNORED, *_IGNORED_OF_DATA):
                    yield f"{name}.{key}", value["default"]


def test_a_changed_default_comes_with_a_new_version_of_the_digests() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == FORMAT_VERSION, "write defaults.json anew"
    now = defaults()
    changed = {
        key: (was, now[key])
        for key, was in golden["defaults"].items()
        if key in now and now[key] != was
    }
    assert not changed, (
        "results of studies in stores and docs were made with the old defaults: raise"
        " FORMAT_VERSION in ifsq_train/study/stage.py, run this module, and run the studies again"
    )


def test_the_list_of_defaults_reaches_into_all_parts() -> None:
    now = defaults()
    assert now["TrainConfig.ema_warmup"] is True
    assert now["FsqConfig.cells"] == "paper"
    assert "TrainConfig.log_every_steps" not in now


if __name__ == "__main__":
    known = {"version": FORMAT_VERSION, "defaults": defaults()}
    GOLDEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
