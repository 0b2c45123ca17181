"""What every task's part of a recipe says of itself."""

from __future__ import annotations

from ifsq_train.config.base import Config
from ifsq_train.config.data import DataConfig


class TaskConfigBase(Config):
    """What the rest of a training recipe must know of a task, whichever it is.

    Subclasses have a field ``kind: Literal["name"]``.
    """

    def networks(self) -> set[str]:
        """Names of the networks the task trains; `optim` has an entry for each."""
        raise NotImplementedError

    def check_data(self, data: DataConfig) -> None:
        """Whether the task can be trained on such data.

        Raises:
            ValueError: it cannot; one line that says what to change.
        """
