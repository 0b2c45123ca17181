"""The strategy (engine) of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ifsq_train.config import (
    StrategyConfig,
)
from ifsq_train.distributed.context import RunContext
from ifsq_train.strategy.base import Strategy

if TYPE_CHECKING:
    pass


def build_strategy(
    config: StrategyConfig, context: RunContext, *, skip_nonfinite: bool = False
) -> Strategy:
    """The engine a recipe asks for; deepspeed is imported only when it is.

    Args:
        config: the recipe's strategy.
        context: this worker's place.
        skip_nonfinite: an update with a gradient that is not finite must be left out (DeepSpeed
            always does).
    """
    if config.kind == "torch":
        from ifsq_train.strategy.torch import TorchStrategy

        return TorchStrategy(config, context, skip_nonfinite=skip_nonfinite)
    from ifsq_train.strategy.deepspeed import DeepSpeedStrategy

    return DeepSpeedStrategy(config, context)
