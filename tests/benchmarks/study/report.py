"""The study's page: a table, a plot, and what the numbers say, whichever way they came out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean, stdev

NAMES = {"ifsq": "iFSQ (alpha 1.6)", "fsq": "FSQ (tanh)", "vq": "VQ (as released)"}
COLORS = {"ifsq": "#3b5bdb", "fsq": "#f08c00", "vq": "#868e96"}
CODES = 9**4

INTRODUCTION = """\
# A pilot on CIFAR-10: iFSQ, FSQ and VQ at equal bits

Does the bound `2 sigmoid(1.6 z) - 1` help, and how do both compare with a learned codebook of the
same size? This page is written by a script that anybody can run again:

```bash
python -m tests.benchmarks.study.run --report docs/studies
```

All three tokenizers share everything but the bottleneck: 8x8 positions of 4 channels, {codes:,}
codes (9 levels in each channel, or {codes:,} learned entries), {bits:.2f} bits per position, the
same network (0.77 million parameters), {steps} steps of {batch} images, squared error only, Adam
with a cosine schedule, averaged weights. {data}. Recipes: `ifsq train study/ifsq`, `study/fsq`,
`study/vq`. A run takes about {seconds:.0f} seconds of processor time, all of them together
{total:.0f} minutes; as many run at once as there are cores (`--jobs`), on one core each. The
whole has taken 9 min 48 s on two idle cores.
"""

DATA = {
    "CIFAR-10": "20,000 images of CIFAR-10 to train on, 2,000 others to measure",
    "digits": "scikit-learn's 1,797 digits, every ninth held out to measure",
}


def write_report(runs: Path, folder: Path, data: str) -> None:
    """Write pilot.md and pilot.svg from the finished runs."""
    records: dict[str, list[dict]] = {}
    for path in sorted(runs.glob("*/study.json")):
        record = json.loads(path.read_text())
        records.setdefault(record["method"], []).append(record)
    folder.mkdir(parents=True, exist_ok=True)
    plot(records, folder / "pilot.svg")
    every = [record for part in records.values() for record in part]
    head = INTRODUCTION.format(
        codes=CODES,
        bits=math.log2(CODES),
        steps=every[0]["steps"],
        batch=32,
        data=DATA[data],
        seconds=mean(record["cpu_s"] for record in every),
        total=sum(record["cpu_s"] for record in every) / 60.0,
    )
    parts = [head, table(records), "\n![Held-out PSNR and codes used](pilot.svg)\n"]
    parts += [seeds_table(records), "## What it says\n", *findings(records), LIMITS]
    (folder / "pilot.md").write_text("\n".join(parts))


LIMITS = f"""
## What it does not say

- These are small networks, short runs and small images. The paper's claims are about 256 px, 83
  million parameters and a hundred times the steps; nothing here confirms or refutes its tables.
- VQ is trained as the released code trains it: no codebook averaging, no restarts, entries that
  start within 1/{CODES:,} of zero. Better recipes for VQ exist and would use more of the codebook.
- Code use is counted over the held-out images' 64 positions each, far more than there are codes.
- Reconstruction of a tokenizer is not yet the quality of what is generated on it.
"""


def spread(values: list[float], digits: int) -> str:
    """Mean and sample standard deviation."""
    return f"{mean(values):.{digits}f} ± {stdev(values) if len(values) > 1 else 0.0:.{digits}f}"


def digit_entropy(record: dict) -> float:
    """Mean over channels, in bits; of at most log2 9 = 3.17."""
    return mean(record["digit_entropy_bits"])


def table(records: dict[str, list[dict]]) -> str:
    """Means over seeds."""
    lines = [
        "| bottleneck | seeds | PSNR (dB) | SSIM | codes used | token entropy (bits) |"
        " digit entropy (bits) | std before the bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, name in NAMES.items():
        runs = records.get(method, [])
        if not runs:
            continue
        levels = "digit_entropy_bits" in runs[0]
        lines.append(
            f"| {name} | {len(runs)} | {spread([r['psnr_db'] for r in runs], 2)}"
            f" | {spread([r['ssim'] for r in runs], 3)}"
            f" | {spread([r['used_codes'][0] for r in runs], 0)}"
            f" | {spread([r['code_entropy_bits'] for r in runs], 2)}"
            f" | {spread([digit_entropy(r) for r in runs], 2) if levels else '-'}"
            f" | {spread([mean(r['prebound_std']) for r in runs], 2)} |"
        )
    return "\n".join([*lines, "", "Means over seeds, ± their standard deviation."])


def seeds_table(records: dict[str, list[dict]]) -> str:
    """Every run."""
    lines = ["", "| seed | " + " | ".join(f"{NAMES[m]} PSNR" for m in records) + " |"]
    lines.append("|---|" + "---|" * len(records))
    for seed in sorted({r["seed"] for part in records.values() for r in part}):
        row = [
            next((f"{r['psnr_db']:.2f}" for r in part if r["seed"] == seed), "-")
            for part in records.values()
        ]
        lines.append(f"| {seed} | " + " | ".join(row) + " |")
    return "\n".join([*lines, ""])


def findings(records: dict[str, list[dict]]) -> list[str]:
    """Comparisons of every pair, seed by seed."""
    found = []
    for first, second in (("ifsq", "fsq"), ("ifsq", "vq"), ("fsq", "vq")):
        a = {r["seed"]: r for r in records.get(first, [])}
        b = {r["seed"]: r for r in records.get(second, [])}
        seeds = sorted(set(a) & set(b))
        if not seeds:
            continue
        gaps = [a[s]["psnr_db"] - b[s]["psnr_db"] for s in seeds]
        more = mean(a[s]["used_codes"][0] - b[s]["used_codes"][0] for s in seeds)
        ahead = sum(gap > 0 for gap in gaps)
        verdict = "fewer than three seeds, so no verdict"
        if len(gaps) > 2:
            clear = abs(mean(gaps)) > 2 * stdev(gaps) / math.sqrt(len(gaps))
            verdict = (
                "more than twice its standard error"
                if clear
                else "within twice its standard error, so these seeds do not decide it"
            )
        found.append(
            f"- {NAMES[first]} against {NAMES[second]}: {mean(gaps):+.2f} dB on average over"
            f" {len(seeds)} seeds ({verdict}), ahead in {ahead} of them;"
            f" {more:+.0f} codes used."
        )
    return found


def plot(records: dict[str, list[dict]], path: Path) -> None:
    """PSNR and codes used, a dot per seed and a bar at the mean."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "study"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), constrained_layout=True)
    panels = (
        ("PSNR of held-out images (dB)", lambda r: r["psnr_db"]),
        (f"codes used of {CODES:,}", lambda r: r["used_codes"][0]),
    )
    for axis, (title, value) in zip(axes, panels, strict=True):
        for place, (method, runs) in enumerate(sorted(records.items())):
            values = [value(run) for run in runs]
            axis.bar(place, mean(values), color=COLORS[method], alpha=0.35, width=0.6)
            axis.scatter([place] * len(values), values, color=COLORS[method], zorder=3)
        axis.set_xticks(range(len(records)), [NAMES[m].split(" ")[0] for m in sorted(records)])
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(bottom=0.9 * min(r["psnr_db"] for part in records.values() for r in part))
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    write_report(Path("runs/study"), Path("docs/studies"), "CIFAR-10")
