"""Where a run stands: the few numbers that, with the weights, resume it exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_pipelines.errors import UserError

STATE_VERSION = 1


@dataclass
class TrainState:
    """Progress of a run.

    Attributes:
        plan_digest: identity of the data order (dataset contents, batch size, seed, window).
        step: optimizer steps done.
        samples_seen: samples of all global batches done.
        last_record: latest logged value of every number, by name.
    """

    plan_digest: str
    step: int = 0
    samples_seen: int = 0
    last_record: dict[str, float] = field(default_factory=dict)
    version: int = STATE_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form kept in a checkpoint."""
        return asdict(self)

    def restore(
        self, saved: dict[str, Any], changed: Sequence[str] = (), *, other_order: bool = False
    ) -> None:
        """Take over a saved state.

        Args:
            saved: see `to_dict`.
            changed: what makes the order of the data another one, ``key: was -> is``.
            other_order: go on with another order of the data, which has been allowed.

        Raises:
            UserError: written by another version, or the data order is not the one the
                checkpoint was made with; names what changed with both values.
        """
        if saved.get("version") != STATE_VERSION:
            raise UserError(
                f"checkpoint state has version {saved.get('version')}, this program reads"
                f" {STATE_VERSION}; resume with the release that wrote it"
            )
        if saved["plan_digest"] != self.plan_digest and not other_order:
            what = "; ".join(changed) or "dataset, global_batch_size, seed or shuffle_window"
            raise UserError(
                f"the checkpoint was made with another order of the data ({what}); restore it, or"
                " start with another output folder"
            )
        self.step = int(saved["step"])
        self.samples_seen = int(saved["samples_seen"])
        self.last_record = dict(saved["last_record"])
