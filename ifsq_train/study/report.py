"""A study's report: Markdown for the documentation, HTML, CSV and LaTeX, from records alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.storage.local import write_atomically
from ifsq_train.config.study import MeasureConfig, StudyConfig
from ifsq_train.study.checks import slug
from ifsq_train.study.claims import SUPPORTED, UNDECIDED, Verdict, judge
from ifsq_train.study.expand import Expansion
from ifsq_train.study.html import html_page
from ifsq_train.study.plots import draw
from ifsq_train.study.rows import Row, by_seed, collect_rows, read_records
from ifsq_train.study.statistics import compare

SIGNATURE = "Page written by `ifsq study report`."
"""Stands on every page, so that no other page is ever replaced."""


@dataclass(frozen=True)
class StudyReport:
    """Everything that is known of a study.

    Attributes:
        recipe: name it is run by.
        config: the study.
        rows: numbers by variant and seed.
        verdicts: one per claim.
        plots: SVG by title.
        done, total: stages with a record, and all.
        machines: processors the stages ran on, with their seconds.
    """

    recipe: str
    config: StudyConfig
    rows: list[Row]
    verdicts: list[Verdict]
    plots: dict[str, str]
    done: int
    total: int
    machines: dict[str, float]


def make_report(recipe: str, expansion: Expansion, results: Path) -> StudyReport:
    """Read the records and draw the conclusions.

    Raises:
        DataError: a damaged record.
        UserError: a claim or plot names what the study has not.
    """
    config, records = expansion.config, read_records(expansion, results)
    rows = collect_rows(expansion, records)
    machines: dict[str, float] = {}
    for record in records.values():
        machine = record.get("machine") or {}
        name = (
            f"{machine.get('cpus', '?')} cores of {machine.get('processor', 'a machine not named')}"
        )
        machines[name] = machines.get(name, 0.0) + float(record.get("cpu_seconds") or 0.0)
    return StudyReport(
        recipe,
        config,
        rows,
        judge(config, rows),
        draw(config, rows, records) if records else {},
        len(records),
        len(expansion.stages),
        machines,
    )


def write_report(report: StudyReport, folder: Path) -> list[Path]:
    """``NAME.md`` and, in ``NAME/``, plots, ``rows.csv``, ``table.tex`` and ``report.html``."""
    name = report.recipe.rpartition("/")[2]
    images = {title: f"{slug(title)}.svg" for title in report.plots}
    files = {folder / f"{name}.md": markdown(report, {t: f"{name}/{f}" for t, f in images.items()})}
    files |= {folder / name / images[title]: svg for title, svg in report.plots.items()}
    files[folder / name / "rows.csv"] = rows_csv(report)
    files[folder / name / "table.tex"] = latex(report)
    files[folder / name / "report.html"] = html_page(
        report.config.title, markdown(report, {}), report.plots
    )
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    return list(files)


def markdown(report: StudyReport, images: dict[str, str]) -> str:
    """The page of one study; `images` are addresses by title, none for a page without."""
    config = report.config
    parts = [
        f"# {config.title}",
        f"Scale: {config.scale}. Seeds: {', '.join(map(str, config.seeds))}."
        f" {_equal(config)} {report.done} of {report.total} stages have results.",
        f"```bash\nifsq study run {report.recipe}\n```",
        *(f"- {note}" for note in config.notes),
        "## Verdicts",
        verdict_table([report], link=False),
        "## Numbers",
        *number_tables(report),
        "Means over seeds ± their standard deviation; n is the number of seeds. Differences are"
        " paired by seed, against the first row, ± their standard error.",
    ]
    if images:
        parts.append("## Plots")
        parts += [f"![{title}]({address})" for title, address in images.items()]
    parts += ["## Tests", *(f"- **{v.claim.id}**: {v.detail}." for v in report.verdicts)]
    if report.machines:
        spent = "; ".join(
            f"{seconds / 60.0:.1f} min of processor time on {name}"
            for name, seconds in sorted(report.machines.items())
        )
        parts.append(f"Made in {spent}. {SIGNATURE}")
    else:
        parts.append(SIGNATURE)
    return _joined(parts)


def _joined(parts: Iterable[str]) -> str:
    """Paragraphs apart, list items together."""
    text = ""
    before = ""
    for part in parts:
        gap = "\n" if part.startswith("- ") and before.startswith("- ") else "\n\n"
        text += (gap if text else "") + part
        before = part
    return text + "\n"


def _equal(config: StudyConfig) -> str:
    budget = config.budget
    if budget.equal == "steps":
        return "Variants have equal steps."
    unit = "FLOPs" if budget.equal == "flops" else "seconds"
    return f"Variants have equal {budget.equal}: {budget.amount:.3g} {unit} of {budget.stage}."


def verdict_table(reports: Sequence[StudyReport], *, link: bool) -> str:
    """Claim, paper's number, ours, verdict, n; with `link` also scale and command."""
    more = " scale | command |" if link else ""
    lines = [
        f"| claim | paper | ours | verdict | n |{more}",
        "|---|---|---|---|---|" + ("---|" * 2 * link),
    ]
    for report in reports:
        name = report.recipe.rpartition("/")[2]
        for verdict in report.verdicts:
            claim = verdict.claim
            label = f"[{claim.id}]({name}.md)" if link else claim.id
            line = (
                f"| {label}: {_cell(claim.statement)} | {_cell(claim.paper) or '-'}"
                f" | {_cell(verdict.ours)} | {_bold(verdict.verdict)} | {verdict.n} |"
            )
            if link:
                line += f" {_cell(report.config.scale)} | `ifsq study run {report.recipe}` |"
            lines.append(line)
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _bold(verdict: str) -> str:
    return verdict if verdict == UNDECIDED else f"**{verdict}**"


def number_tables(report: StudyReport) -> list[str]:
    """One table of means for all measures, and with curves one of the points."""
    header, body = numbers(report)
    tables = [_table(header, body)] if body else ["No results yet."]
    header, body = curve_numbers(report)
    return [*tables, _table(header, body)] if body else tables


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def numbers(report: StudyReport) -> tuple[list[str], list[list[str]]]:
    """Header and a row per variant; a paired difference beside every measure that has a better."""
    measures = report.config.measures
    header = ["variant", "n"]
    for measure in measures.values():
        header.append(measure.label)
        if measure.better:
            header.append("difference")
    groups = _grouped(report.rows)
    first = next(iter(groups.values()), [])
    body = []
    for title, rows in groups.items():
        values = {name: by_seed(rows, name) for name in measures}
        n = max((len(found) for found in values.values()), default=0)
        if not n:
            continue
        line = [_cell(title) or "-", str(n)]
        for name, measure in measures.items():
            line.append(spread(list(values[name].values()), measure))
            if measure.better:
                line.append(_paired(values[name], by_seed(first, name), measure, rows is first))
        body.append(line)
    return header, body


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.variant.title, []).append(row)
    return groups


def spread(values: Sequence[float], measure: MeasureConfig) -> str:
    """Mean ± sample standard deviation."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.{measure.digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{measure.digits}f}" if len(values) > 1 else mean


def _paired(
    values: dict[int, float], others: dict[int, float], measure: MeasureConfig, same: bool
) -> str:
    found = compare(values, others)
    if same or found.n < 2:
        return "-"
    return f"{found.difference:+.{measure.digits}f} ± {found.error:.{measure.digits}f}"


def curve_numbers(report: StudyReport) -> tuple[list[str], list[list[str]]]:
    """A row per variant and step of a curve, means over seeds."""
    measures, body = report.config.measures, []
    for title, rows in _grouped(report.rows).items():
        for step in sorted({point.step for row in rows for point in row.curve}):
            points = [point for row in rows for point in row.curve if point.step == step]
            line = [_cell(title), str(step), f"{points[0].flops:.3g}", f"{points[0].samples:.0f}"]
            line.append(f"{np.mean([point.seconds for point in points]):.1f}")
            for name, measure in measures.items():
                line.append(
                    spread([p.measures[name] for p in points if name in p.measures], measure)
                )
            body.append(line)
    header = ["variant", "step", "FLOPs", "samples", "seconds"]
    return [*header, *(measure.label for measure in measures.values())], body


def rows_csv(report: StudyReport) -> str:
    """Every row with labels, seed, facts and measures in full."""
    axes = list(dict.fromkeys(axis for row in report.rows for axis in row.variant.labels))
    facts = list(dict.fromkeys(fact for row in report.rows for fact in row.variant.facts))
    measures = list(report.config.measures)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*axes, "seed", "step", *facts, "flops", "samples", *measures])
    for row in report.rows:
        head = [row.variant.labels.get(axis, "") for axis in axes]
        tail = [row.variant.facts.get(fact, "") for fact in facts]
        values = [row.measures.get(name, "") for name in measures]
        writer.writerow([*head, row.variant.seed, "", *tail, "", "", *values])
        for point in row.curve:
            values = [point.measures.get(name, "") for name in measures]
            far = [f"{point.flops:.6g}", f"{point.samples:.6g}"]
            writer.writerow([*head, row.variant.seed, point.step, *tail, *far, *values])
    return buffer.getvalue()


_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$"}


def latex(report: StudyReport) -> str:
    """The table of means for a paper."""
    header, body = numbers(report)
    lines = [f"% {report.config.title}; ifsq study report {report.recipe}"]
    lines.append(r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}")
    lines += [" & ".join(_tex(cell) for cell in row) + r" \\" for row in [header, *body]]
    lines.insert(3, r"\hline")
    return "\n".join([*lines, r"\end{tabular}", ""])


def _tex(text: str) -> str:
    escaped = "".join(_LATEX.get(letter, letter) for letter in text)
    return escaped.replace("±", r"$\pm$").replace("²", r"$^2$")


INDEX_HEAD = """\
# Studies: the paper's claims, one by one

Each row is one claim of the paper or of this project, the paper's number, what our study found,
and the verdict **at the study's scale**: *supported* or *contradicted* where a paired test over
seeds finds a difference at the 5 % level (Holm's correction where several are made), *undecided*
otherwise and always below three seeds. Small studies run on two CPU cores on scikit-learn's digits;
they test the direction of a claim and confirm or refute none of the paper's tables."""


def index(reports: Sequence[StudyReport], tail: str = "") -> str:
    """The page with one table of all claims."""
    counts = [v.verdict for report in reports for v in report.verdicts]
    summary = ", ".join(
        f"{counts.count(one)} {one}" for one in (SUPPORTED, "contradicted", UNDECIDED)
    )
    parts = [INDEX_HEAD, f"{len(counts)} claims: {summary}.", verdict_table(reports, link=True)]
    return _joined([*parts, tail.strip()] if tail else parts)
