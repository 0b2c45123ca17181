"""What the dashboards show."""

from __future__ import annotations

from operation_boards import DATA, FLEET, PRECOMPUTE
from panels import GPU_ONLY, Dashboard, Panel
from training_boards import TOKENIZER, TRAINING

DASHBOARDS = (TRAINING, TOKENIZER, PRECOMPUTE, DATA, FLEET)
__all__ = ["DASHBOARDS", "GPU_ONLY", "Dashboard", "Panel"]
