"""The page of `ifsq report`: self-contained HTML, and the same tables as CSV beside it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.regular_files import open_regular
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.outputs import claim_file
from ifsq_train.report.charts import (
    charts,
    explanation,
    level_charts,
    line_chart,
    padded_histograms,
)
from ifsq_train.report.elements import (
    REPORT_TITLE,
    page,
    pairs_table,
    reconstruction_pairs,
    sample_grid,
    section,
    wide_table,
)
from launchers.reports.compare import Table, tables
from launchers.reports.runs import StoredRun

COMMAND = "ifsq report"
SAMPLES_PER_CLASS, MAX_CLASSES, PAIRS = 10, 12, 24
MAX_CURVES = 12
_SKIPPED = ("lr/", "seconds", "samples_seen", "epoch", "memory", "throughput", "data_wait")


def write_page(runs: Sequence[StoredRun], output: Path, command: str) -> list[Path]:
    """Write the page and one CSV file per table.

    Args:
        runs: shown in this order.
        output: HTML file; CSV files are written beside it, named after it.
        command: as the user typed it, kept on the page.

    Returns:
        All files written, the page first.

    Raises:
        UserError: a name that does not end in .html, or a file there that `ifsq report` did not
            write.
    """
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {output} must end in .html")
    found = tables(runs)
    _refuse_foreign(output, [_csv_beside(output, table.title) for table in found])
    body = [
        section("Runs", _overview(runs)),
        *(section(table.title, wide_table(table.columns, table.rows)) for table in found),
        *(part for run in runs for part in _pictures(run)),
        section("Environment", _environment(runs, command)),
        section("What next", _next_steps(runs)),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    written = [output]
    names = ", ".join(run.name for run in runs)
    write_atomically(output, page("".join(body), f"Runs: {names}").encode())
    for table in found:
        path = _csv_beside(output, table.title)
        write_atomically(path, table.csv().encode())
        written.append(path)
    return written


def _csv_beside(output: Path, title: str) -> Path:
    name = title.lower().replace(": ", "-").replace(" ", "-")
    return output.with_name(f"{output.stem}-{name}.csv")


def _refuse_foreign(output: Path, csv_files: Sequence[Path]) -> None:
    """Raise UserError where a file is there that `ifsq report` did not write.

    CSV files are this command's own where the page beside them is.
    """
    own = _is_report(output)
    for path in (output, *csv_files):
        claim_file(path, COMMAND, {} if own else None, {}, overwrite=False)


def _is_report(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return REPORT_TITLE.encode() in file.read(2_000)
    except OSError:
        return False


def _overview(runs: Sequence[StoredRun]) -> str:
    rows = [(run.name, run.kind, str(run.path)) for run in runs]
    return wide_table(("name", "kind", "place"), rows)


def _pictures(run: StoredRun) -> list[str]:
    """Sections with what can be looked at."""
    if run.kind == "training":
        parts = [section(f"Curves: {run.name}", _curve_charts(run))] if run.curves else []
        return parts + _reconstructions(run)
    if run.kind == "samples":
        return [section(f"Samples: {run.name}", _samples(run.path))]
    histograms = run.details.get("digit_histograms")
    if histograms:
        title = f"Use of quantizer levels: {run.name}"
        return [section(title, level_charts(padded_histograms(histograms)))]
    return []


def _curve_charts(run: StoredRun) -> str:
    names = [name for name in run.curves if not name.startswith(_SKIPPED) and run.curves[name]]
    names.sort(key=lambda name: (not explanation(name), name != "loss", name))
    drawn = [line_chart(name, run.curves[name], explanation(name)) for name in names[:MAX_CURVES]]
    return charts(drawn)


def _reconstructions(run: StoredRun) -> list[str]:
    """Images of the training data through a trained tokenizer, where both still are there."""
    task = run.recipe.get("task", {})
    if task.get("kind") != "tokenizer" or not (run.path / "checkpoints").is_dir():
        return []
    try:
        originals, made = _reconstruct(run)
    except (UserError, OSError) as error:
        return [section(f"Reconstructions: {run.name}", f"<p>{escape(str(error))}</p>")]
    note = "<p class=note>Images of the training data, reconstructed with the saved weights.</p>"
    body = note + reconstruction_pairs(originals, made)
    return [section(f"Reconstructions: {run.name}", body)]


def _reconstruct(run: StoredRun) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    import torch

    from ifsq_train.artifacts.trained import load_tokenizer, to_pixels
    from ifsq_train.config.load import validate_recipe
    from ifsq_train.distributed.context import InProcessContext
    from ifsq_train.evaluation.image_sets import HeldOutImages

    config: Any = validate_recipe(dict(run.recipe), source=str(run.path))
    images = next(
        HeldOutImages(config.data.urls[0], config.data.view, PAIRS).batches(InProcessContext())
    )[:PAIRS].cpu()
    with torch.inference_mode():
        network = load_tokenizer(run.path).network
        made, _ = network(images)
    return to_pixels(network.seen(images)), to_pixels(made)


def _samples(folder: Path) -> str:
    from ifsq_train.sampling.draw import read_samples

    samples = read_samples(folder)
    labels = sorted({int(label) for label in samples.labels})[:MAX_CLASSES]
    rows = [samples.images[samples.labels == label][:SAMPLES_PER_CLASS] for label in labels]
    return sample_grid(rows, [f"class {label}" for label in labels])


def _environment(runs: Sequence[StoredRun], command: str) -> str:
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    values: dict[str, Any] = {"report made": made, "command": command}
    for run in runs:
        for key, value in run.environment.items():
            shown = values.setdefault(key, value)
            if shown != value and str(value) not in str(shown):
                values[key] = f"{shown}; {value} ({run.name})"
    return pairs_table(values)


def _next_steps(runs: Sequence[StoredRun]) -> str:
    """The command that usually follows what the page shows."""
    kinds = {run.kind for run in runs}
    tasks = {run.recipe.get("task", {}).get("kind") for run in runs}
    steps = []
    if "tokenizer" in tasks and "evaluation" not in kinds:
        steps.append("Measure the tokenizer on held-out images: <code>ifsq evaluate RECIPE</code>")
    if "tokenizer" in tasks and "tokens" not in kinds:
        steps.append("Encode the images once: <code>ifsq precompute RECIPE</code>")
    if tasks & {"autoregressive", "diffusion"} and "samples" not in kinds:
        steps.append("Draw images: <code>ifsq sample RECIPE</code>")
    if len(runs) > 1:
        places = escape(" ".join(str(run.path) for run in runs))
        steps.append(f"The same numbers in the terminal: <code>ifsq compare {places}</code>")
    steps.append("Vary one thing at a time, over several seeds: docs, Studies")
    return f"<ul>{''.join(f'<li>{step}</li>' for step in steps)}</ul>"


def shown_tables(found: Sequence[Table]) -> list[str]:
    """Tables for a terminal, a blank line between them."""
    lines: list[str] = []
    for table in found:
        lines += [table.title, *table.lines(), ""]
    return lines[:-1]
