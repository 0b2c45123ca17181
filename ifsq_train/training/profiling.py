"""torch.profiler traces of chosen steps."""

from __future__ import annotations

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from ifsq_train.config import ProfileConfig
from ifsq_train.distributed.context import RunContext


class StepProfiler:
    """Records the steps a recipe asks for; does nothing where it asks for none.

    Args:
        config: which steps.
        context: names the file and says whether there is a GPU.
        folder: the run's folder; traces go to ``profile/`` in it, for chrome://tracing or Perfetto.
    """

    def __init__(self, config: ProfileConfig | None, context: RunContext, folder: Path) -> None:
        self._config, self._context, self._folder = config, context, folder / "profile"
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """To be called before each step."""
        if self._config is None or step != self._config.first_step:
            return
        activities = [ProfilerActivity.CPU]
        if self._context.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities, profile_memory=self._config.memory, record_shapes=True
        )
        self._profile.start()

    def after(self, step: int) -> None:
        """To be called after each step, with the number `before` was given."""
        if self._config is None or self._profile is None:
            return
        if step + 1 >= self._config.first_step + self._config.num_steps:
            self.close()

    def close(self) -> None:
        """Write what was recorded, if anything is being."""
        if self._profile is None:
            return
        recorded, self._profile = self._profile, None
        recorded.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"step{self._config.first_step if self._config else 0}-rank{self._context.rank:05d}"
        recorded.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
