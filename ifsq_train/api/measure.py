"""`evaluate`: the measures of `ifsq evaluate` from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage.scratch import scratch_folder
from ifsq_train.artifacts.recipe_faults import recipe_faults
from ifsq_train.config import EvaluateConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.evaluation import evaluate as evaluation


def evaluate(
    *, output: str | Path | None = None, overwrite: bool = False, **settings: Any
) -> dict[str, Any]:
    """Measure reconstructions of a tokenizer, samples of a generator, or both.

    Args:
        output: result file to write, as `ifsq evaluate` does; none when not given.
        overwrite: replace a result of other settings there.
        settings: as in recipes of `ifsq evaluate`: tokenizer, data, view, samples, metrics and so
            on; places as text.

    Returns:
        What a result file holds (docs/evaluation.md); the numbers are under ``metrics``.

    Raises:
        UserError: an unknown setting or value, parts that are missing or do not fit together, or
            an output that is something else or a result of other settings.
    """
    with scratch_folder() as scratch:
        file = Path(output) if output is not None else scratch / "result.json"
        values = {"kind": "evaluate", **_plain(settings), "output": str(file)}
        config = validate_recipe(values, "evaluate", recipe_faults)
        if not isinstance(config, EvaluateConfig):
            raise UserError("kind: leave it out; this is an evaluation")
        return evaluation.evaluate(config, overwrite=overwrite)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Paths as the text that recipes have."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in settings.items()
    }
