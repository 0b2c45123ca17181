"""Train LlamaGen on image tokens."""

from __future__ import annotations

from torch import Tensor, nn

from ifsq_train.config import AutoregressiveTaskConfig
from ifsq_train.losses.token_cross_entropy import sum_of_group_means, token_cross_entropy
from ifsq_train.models.plain import plain_paths
from ifsq_train.tasks.base import StepInfo
from ifsq_train.tasks.generator import GeneratorTask, Labels, Prediction


class AutoregressiveTask(GeneratorTask[AutoregressiveTaskConfig]):
    """Next-token prediction with label dropout and alignment (released llamagen/train.py)."""

    def predict(
        self, network: nn.Module, inputs: Tensor, labels: Labels, info: StepInfo
    ) -> Prediction:
        """Cross-entropy of the tokens, group by group."""
        weights, plain = self.config.group_weights, plain_paths()
        output = self.forward(
            network, info, inputs, labels.classes,
            drop_labels=labels.dropped, losses_only=not plain,
        )  # fmt: skip
        if plain:
            entropy = token_cross_entropy(output.logits, inputs, weights)
        else:
            entropy = sum_of_group_means(output.group_losses, weights)
        metrics = {"cross_entropy": entropy.detach()} if self.aligned else {}
        return Prediction(entropy, metrics, output.projections)
