"""A job's state in words that are the same for every kind of cluster."""

from __future__ import annotations

from dataclasses import dataclass

QUEUED, STARTING, RUNNING = "queued", "starting", "running"
RETRYING, SUCCEEDED, FAILED = "retrying", "succeeded", "failed"
GONE = "deleted"
FINISHED = (SUCCEEDED, FAILED, GONE)


@dataclass(frozen=True)
class JobState:
    """What a cluster says about a job.

    Attributes:
        name: of the job.
        phase: queued, starting, running, retrying, succeeded, failed or deleted.
        detail: why, where the cluster says so.
        attempts: Ray clusters that failed so far.
        created: ISO time of submission, or empty.
        nodes: worker nodes asked for; 0 where unknown.
        queue: Kueue queue, or empty.
        dashboard: address of Ray's dashboard inside the cluster, or empty.
    """

    name: str
    phase: str
    detail: str = ""
    attempts: int = 0
    created: str = ""
    nodes: int = 0
    queue: str = ""
    dashboard: str = ""

    @property
    def finished(self) -> bool:
        """Nothing will change any more."""
        return self.phase in FINISHED

    def line(self) -> str:
        """One line for a person."""
        text = self.phase
        if self.phase == QUEUED and self.queue:
            text += f" in {self.queue}"
        if self.attempts:
            text += f" ({self.attempts} failed {'attempt' if self.attempts == 1 else 'attempts'})"
        return f"{text}: {self.detail}" if self.detail else text

    def rows(self) -> list[tuple[str, str]]:
        """Title and value of everything known, for `ifsq status`."""
        rows = [
            (key, str(value))
            for key in ("name", "phase", "detail", "created", "queue", "dashboard")
            if (value := getattr(self, key))
        ]
        if self.nodes:
            rows.append(("nodes", str(self.nodes)))
        if self.attempts:
            rows.append(("failed", f"{self.attempts} attempts"))
        return rows

    def row(self, extra: str = "") -> str:
        """One line of `ifsq jobs`.

        Args:
            extra: further facts, such as progress.
        """
        nodes = str(self.nodes) if self.nodes else "-"
        text = f"{self.line()}  {extra}" if extra else self.line()
        return f"{self.name:48} {self.created:21} {nodes:>5}  {text}"
