"""Save at every (ZeRO stage, world size), load at every other, compare the losses that follow."""

from __future__ import annotations

from tests.support.ranks import run_ranks

SAVE_AT, LAST = 6, 16


class Report:
    """Differences by (saved world, loaded world), and cells that should be equal and are not."""

    def __init__(self) -> None:
        self.worst: dict[tuple[int, int], float] = {}
        self.unequal: list[str] = []
        self.cells = 0

    def add(self, saved: tuple[int, int], loaded: tuple[int, int], a: list, b: list) -> None:
        """Compare the losses `b` after loading with those of the run that went on, `a`."""
        assert len(a) == len(b) == LAST - SAVE_AT
        error = max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))
        key = (saved[1], loaded[1])
        self.worst[key] = max(self.worst.get(key, 0.0), error)
        self.cells += 1
        if saved == loaded and a != b:
            self.unequal.append(f"stage {saved[0]} world {saved[1]}")

    def lines(self) -> list[str]:
        """For the reader."""
        table = [
            f"world {saved} -> {loaded}: largest relative difference {error:.1e}"
            for (saved, loaded), error in sorted(self.worst.items())
        ]
        same = "all bit-identical" if not self.unequal else f"differ: {', '.join(self.unequal)}"
        return [*table, f"{self.cells} cells; loaded where they were saved: {same}"]


def measure(folder: str, worlds: list[int], stages: list[int]) -> Report:
    """All cells."""
    went_on = {}
    for world in worlds:
        results = run_ranks(
            world,
            "save_cells",
            timeout_seconds=1200,
            folder=folder,
            stages=stages,
            save_at=SAVE_AT,
            last=LAST,
        )
        for stage in stages:
            went_on[stage, world] = results[0][str(stage)]["after"]
    cells = [f"stage{stage}-world{world}" for stage, world in went_on]
    report = Report()
    for world in worlds:
        results = run_ranks(
            world,
            "load_cells",
            timeout_seconds=1200,
            folder=folder,
            stages=stages,
            cells=cells,
            save_at=SAVE_AT,
            last=LAST,
        )
        for saved, losses in went_on.items():
            for stage in stages:
                found = results[0][f"stage{saved[0]}-world{saved[1]}>{stage}"]
                report.add(saved, (stage, world), losses, found)
    return report
