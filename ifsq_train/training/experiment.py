"""Whether a run that is started again is the same experiment.

The whole recipe in the newest checkpoint is compared with the one of this start. Keys that only
extend a run, observe it or spread it over other machines may differ; where data lies is compared
by contents elsewhere. Everything else is refused unless it is allowed by name, and every change is
kept in later checkpoints and in the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.differences import ABSENT, as_text, changed_keys
from data_pipelines.errors import UserError
from ifsq_train.config import TrainConfig, to_dict
from ifsq_train.config.load import validate_recipe
from ifsq_train.config.paths import path_keys, with_absolute_paths

FREE_KEYS = (
    "name",
    "steps",
    "log_every_steps",
    "checkpoint",
    "dry_run",
    "watchdog_seconds",
    "profile",
    "trackers",
    "track_images",
    "data.max_bad_samples",
    "strategy.kind",
    "strategy.zero_stage",
    "strategy.micro_batch_size",
    "strategy.offload_optimizer",
    "strategy.activation_checkpointing",
    "strategy.compile",
)
"""Keys, with everything below them, that may change between two starts of a run."""
ORDER_KEYS = ("seed", "data.url", "data.mix", "data.global_batch_size", "data.shuffle_window")
"""What the order of the data is made of."""

Changes = dict[str, tuple[Any, Any]]
"""Dotted key to its value in the checkpoint and its value now."""


def covers(keys: Sequence[str], key: str) -> bool:
    """Whether `key` is one of `keys` or below one of them."""
    return any(key == known or key.startswith(f"{known}.") for known in keys)


def recipe_changes(saved: Mapping[str, Any], config: TrainConfig) -> Changes:
    """Keys whose values differ from those of a checkpoint's recipe.

    Keys that the checkpoint's release did not have are as the default now, or as ignored then.
    """
    was, now = _comparable(saved), to_dict(with_absolute_paths(config))
    if "ema_warmup" not in saved:
        was["ema_warmup"] = now["ema_warmup"]
    places = {key for key in path_keys(config) if covers(("output", "data"), key)}
    changed = changed_keys(was, now)
    return {
        key: values
        for key, values in changed.items()
        if key not in places and not (covers(("output", "data.url"), key))
    }


def _comparable(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved recipe with the defaults of today filled in; as it is where it cannot be read."""
    try:
        recipe = validate_recipe(dict(saved), "checkpoint")
    except UserError:
        return dict(saved)
    return to_dict(with_absolute_paths(recipe))


def refuse_changes(where: str, step: int, changes: Changes, allowed: Sequence[str]) -> None:
    """Raise UserError that lists all changes which are neither free nor allowed.

    Args:
        where: the run folder.
        step: of the checkpoint.
        changes: see `recipe_changes`.
        allowed: keys of ``--allow-change``.
    """
    refused = {k: v for k, v in changes.items() if not covers((*FREE_KEYS, *allowed), k)}
    if not refused:
        return
    options = " ".join(f"--allow-change {key}" for key in refused)
    head = (
        f"{where} was trained with other settings up to step {step}; restore them, choose another"
        f" output folder, or go on from there with the changes: {options}"
    )
    raise UserError(head, *as_text(refused))


def changes_to_record(header: Mapping[str, Any], changes: Changes) -> list[dict[str, Any]]:
    """All changes of a run so far: those its checkpoint knows, then those of this start.

    Returns:
        Entries with key, was, is and step (the first step with the new value comes after it).
    """
    step = header["train_state"]["step"]
    new = [
        {"key": key, "was": _json(was), "is": _json(now), "step": step}
        for key, (was, now) in changes.items()
    ]
    return [*header.get("changes", []), *new]


def _json(value: Any) -> Any:
    return None if value == ABSENT else value


def order_changes(
    header: Mapping[str, Any], changes: Changes, data: Mapping[str, Any]
) -> list[str]:
    """What makes the order of the data another one than the checkpoint's, as ``key: was -> is``.

    Args:
        header: of the checkpoint.
        changes: see `recipe_changes`.
        data: what was opened now, see `TrainData.describe`.
    """
    keys = {key: values for key, values in changes.items() if covers(ORDER_KEYS, key)}
    was, now = (_dataset(facts) for facts in (header.get("data") or {}, data))
    return as_text(keys) + as_text({"dataset": (was, now)} if was != now else {})


def _dataset(facts: Mapping[str, Any]) -> str:
    digests = [facts.get("digest"), *(part["digest"] for part in facts.get("mix", []))]
    short = ", ".join(str(digest)[:12] for digest in digests if digest)
    return f"{facts.get('num_samples')} samples, digest {short}"
