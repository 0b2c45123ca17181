"""What the dashboards show."""

from __future__ import annotations

from k8s.dashboards.operation_boards import DATA, FLEET, PRECOMPUTE
from k8s.dashboards.panels import GPU_ONLY, Dashboard, Panel
from k8s.dashboards.training_boards import TOKENIZER, TRAINING

DASHBOARDS = (TRAINING, TOKENIZER, PRECOMPUTE, DATA, FLEET)
__all__ = ["DASHBOARDS", "GPU_ONLY", "Dashboard", "Panel"]
