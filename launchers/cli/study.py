"""`ifsq study plan | search | run | status | report`: controlled comparisons."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_pipelines.errors import UserError
from launchers.cli.options import Address, Overrides, Overwrite, finite
from launchers.cli.plan import DEFAULT_PEAK_TFLOPS

if TYPE_CHECKING:
    from ifsq_train.config import StudyConfig
    from ifsq_train.study.expand import Expansion
    from ifsq_train.study.searches import Search, Trial
    from launchers.study.run import Summary

app = typer.Typer(help="Plan, run and report controlled comparisons.", no_args_is_help=True)

StudyName = Annotated[str, typer.Argument(help="YAML file or shipped study (`ifsq recipes`).")]
StoreFolder = Annotated[
    Path, typer.Option("--store", help="Folder of all stages; studies share what they can.")
]
Results = Annotated[
    Path | None, typer.Option("--results", help="Folder of one small JSON file per stage.")
]
DEFAULT_STORE = Path("runs/studies")


@app.command()
def plan(
    study: StudyName,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="That work at the same time.")] = 8,
    peak_tflops: Annotated[
        float,
        typer.Option(
            callback=finite, min=0.001, help="Of one GPU; the default is an H100 in bf16."
        ),
    ] = DEFAULT_PEAK_TFLOPS,
    efficiency: Annotated[
        float,
        typer.Option(callback=finite, min=0.01, max=1.0, help="Part of the peak that is reached."),
    ] = 0.35,
    every: Annotated[bool, typer.Option("--every", help="A line for every single stage.")] = False,
) -> None:
    """List the unique stages with FLOPs, hours and bytes, from arithmetic; runs nothing."""
    from ifsq_train.study.plan import plan_study

    expansion = _expansion(study, overrides)
    plans = plan_study(expansion)
    rate = gpus * peak_tflops * 1e12 * efficiency
    variants = len(expansion.variants)
    typer.echo(f"{expansion.config.name}: {variants} variants with seeds, {len(plans)} stages")
    typer.echo(f"{'STAGE':<16} {'KIND':<12} {'COUNT':>6} {'FLOPS':>10} {'HOURS':>9} {'GIB':>9}")
    names = dict.fromkeys(one.stage.name for one in plans)
    for name in [*names, None]:
        part = [one for one in plans if name in (None, one.stage.name)]
        flops = sum(one.flops or 0.0 for one in part)
        size = sum(one.num_bytes or 0.0 for one in part) / 2.0**30
        kind = part[0].stage.kind if name else ""
        typer.echo(
            f"{name or 'all':<16} {kind:<12} {len(part):>6} {flops:>10.3g}"
            f" {flops / rate / 3600.0:>9.3g} {size:>9.3g}"
        )
        for one in part if every and name else ():
            flops = "-" if one.flops is None else f"{one.flops:.3g}"
            typer.echo(f"  {one.stage.folder} {flops} for {one.uses}: {one.stage.variant}")
    typer.echo(
        f"hours: on {gpus} GPUs at {efficiency:.0%} of {peak_tflops:g} TFLOP/s; packing, encoding"
        " of data that is not there yet and evaluation are not counted"
    )


@app.command()
def status(
    study: StudyName,
    overrides: Overrides = None,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Show what is done, running, failed and left, and how long it may take."""
    from ifsq_train.metrics.progress import format_duration
    from ifsq_train.study.status import read_status
    from ifsq_train.study.store import Store

    found = read_status(_expansion(study, overrides), Store(store))
    typer.echo(f"{'STAGE':<16} {'DONE':>6} {'RUNNING':>8} {'FAILED':>7} {'LEFT':>6} {'MEAN':>9}")
    for name, one in found.by_name.items():
        each = "-" if one.seconds is None else format_duration(one.seconds)
        typer.echo(
            f"{name:<16} {one.done:>6} {one.running:>8} {one.failed:>7} {one.waiting:>6} {each:>9}"
        )
    for folder, error in found.failures.items():
        typer.echo(f"failed: {folder}: {error.splitlines()[0]}")
    eta = "not known yet" if found.eta_seconds is None else format_duration(found.eta_seconds)
    typer.echo(f"time left: {eta}")


@app.command()
def run(
    study: StudyName,
    overrides: Overrides = None,
    store: StoreFolder = DEFAULT_STORE,
    results: Results = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers of each training.")] = 1,
    gpus_per_worker: Annotated[int, typer.Option(min=0)] = 0,
    cpus_per_worker: Annotated[float, typer.Option(callback=finite, min=0.1)] = 1,
    address: Address = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only variants with this label; may be repeated.")
    ] = None,
    launcher: Annotated[
        Literal["ray", "local"], typer.Option(help="local: one stage after another, no Ray.")
    ] = "ray",
    to: Annotated[
        Literal["here", "ray", "k8s"],
        typer.Option("--to", help="ray, k8s: send the study to a cluster as one job."),
    ] = "here",
    nodes: Annotated[int, typer.Option(min=1, help="With --to: worker nodes.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="With --to.")] = 0,
    image: Annotated[str, typer.Option(help="With --to k8s.", envvar="IFSQ_IMAGE")] = "",
    storage: Annotated[list[str] | None, typer.Option(help="With --to k8s, as submit's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --to: send nothing.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Run every stage that is not done yet; run again to go on. Exit code 1 if a stage failed.

    `ifsq submit STUDY` sends a study to a cluster too, with that command's further options.
    """
    from ifsq_train.config import LaunchConfig
    from launchers.study.run import RunOptions, run_study

    if to != "here":
        from launchers.cli.submit import submit

        _refuse_with_to(
            store=store != DEFAULT_STORE, results=results is not None, only=bool(only),
            launcher=launcher == "local", workers=workers > 1,
            gpus_per_worker=gpus_per_worker > 0, overwrite=overwrite,
        )  # fmt: skip
        submit(
            study, overrides, to=to, nodes=nodes, gpus_per_node=gpus_per_node,
            image=image, storage=storage, dry_run=dry_run,
        )  # fmt: skip
        return
    if launcher == "local" and (workers > 1 or gpus_per_worker):
        raise UserError("--launcher local runs one CPU worker; leave --workers out or use ray")
    launch = LaunchConfig(
        num_workers=workers, gpus_per_worker=gpus_per_worker, cpus_per_worker=cpus_per_worker
    )
    expansion = _expansion(study, overrides, only)
    options = RunOptions(store, results, launcher, address, launch, overwrite=overwrite)
    summary = run_study(expansion, options)
    _show_summary(expansion.config.name, summary)


def _refuse_with_to(**given: bool) -> None:
    """Options that a job on a cluster would not see."""
    if named := [f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given]:
        raise UserError(
            f"{', '.join(named)}: has no effect with --to; the job has a store of its own and takes"
            " --nodes and --gpus-per-node"
        )


def _show_summary(name: str, summary: Summary) -> None:
    """One line of counts, and one for each failed stage; exit code 1 if there is one."""
    typer.echo(
        f"{name}: {summary.done} stages done, {summary.reused} found done,"
        f" {len(summary.failed)} failed, {summary.blocked} left out; {summary.seconds:.0f} s"
    )
    for folder, error in summary.failed.items():
        sys.stderr.write(f"failed: {folder}: {error.splitlines()[0]}\n")
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def search(
    study: StudyName,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option(help="YAML file for the study with the values that were found.")
    ] = Path("tuned.yaml"),
    store: StoreFolder = DEFAULT_STORE,
    gpus_per_worker: Annotated[int, typer.Option(min=0, max=1, help="Of each training.")] = 0,
    cpus_per_worker: Annotated[float, typer.Option(callback=finite, min=0.1)] = 1,
    address: Address = None,
) -> None:
    """Choose a value before the comparison, such as each variant's learning rate.

    Ray Tune tries the values of the study's `search` and stops the worse trainings early (ASHA).
    """
    import yaml

    from data_pipelines.storage.local import write_atomically
    from ifsq_train.config import LaunchConfig
    from ifsq_train.study.searches import best_values, with_values
    from launchers.study.run import RunOptions
    from launchers.study.search import search_study

    if output.exists():
        raise UserError(f"--output: {output} is there already; name another file, or move it away")
    config = _study(study, overrides)
    launch = LaunchConfig(gpus_per_worker=gpus_per_worker, cpus_per_worker=cpus_per_worker)
    found, trials = search_study(config, RunOptions(store, address=address, launch=launch))
    chosen = best_values(found, trials)
    _show_trials(found, trials)
    recipe = yaml.safe_dump(with_values(config, chosen), sort_keys=False, allow_unicode=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, f"# Made by `ifsq study search {study}`.\n{recipe}".encode())
    for label, value in chosen.items():
        of = "" if label is None else f"{label}: "
        typer.echo(f"{of}{found.config.stage}.{found.config.key} = {value}")
    typer.echo(f"next: ifsq study run {output}")


def _show_trials(found: Search, trials: dict[str, Trial]) -> None:
    """A line for each training that was tried."""
    typer.echo(f"{'LABEL':<20} {'VALUE':>12} {'STEPS':>8} {found.config.metric.upper():>12}")
    for label, by_value in found.trainings.items():
        for value, digest in by_value.items():
            one = trials[digest]
            loss = "-" if one.loss is None else f"{one.loss:.6g}"
            failed = f"  failed: {one.error.splitlines()[0]}" if one.error else ""
            shown = "all" if label is None else str(label)
            typer.echo(f"{shown:<20} {value!s:>12} {one.steps:>8} {loss:>12}{failed}")


@app.command()
def report(
    studies: Annotated[
        list[str], typer.Argument(help="Studies, or folders of shipped ones: studies/small.")
    ],
    results: Annotated[
        Path, typer.Option("--results", help="Folder of records, or a store.")
    ] = DEFAULT_STORE,
    output: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("runs/report"),
) -> None:
    """Tables, plots and verdicts from the records alone: Markdown, HTML, CSV and LaTeX."""
    from data_pipelines.storage.local import write_atomically
    from ifsq_train.study.outputs import claim_pages
    from ifsq_train.study.report import index, make_report, write_report

    if not results.is_dir():
        raise UserError(f"--results: no folder '{results}'; run the study first")
    names = _names(studies)
    claim_pages(output, [name.rpartition("/")[2] for name in names])
    reports = [make_report(name, _expansion(name, None), results) for name in names]
    for one in reports:
        write_report(one, output)
        for verdict in one.verdicts:
            typer.echo(f"{verdict.claim.id}: {verdict.verdict} (n = {verdict.n}): {verdict.ours}")
    write_atomically(output / "index.md", index(reports).encode())
    typer.echo(f"pages in {output}")


def _names(studies: list[str]) -> list[str]:
    """Studies by name; a folder of shipped ones stands for all in it."""
    from ifsq_train.config.load import list_recipes

    shipped = [name for name, _ in list_recipes()]
    found: list[str] = []
    for study in studies:
        inside = [name for name in shipped if name.rpartition("/")[0] == study.rstrip("/")]
        found += inside or [study]
    return list(dict.fromkeys(found))


def _expansion(study: str, overrides: list[str] | None, only: list[str] | None = None) -> Expansion:
    from ifsq_train.study.expand import expand, restricted

    expansion = expand(_study(study, overrides))
    return restricted(expansion, only) if only else expansion


def _study(study: str, overrides: list[str] | None) -> StudyConfig:
    from ifsq_train.config import StudyConfig
    from ifsq_train.config.load import load_recipe

    config = load_recipe(study, overrides or [])
    if not isinstance(config, StudyConfig):
        raise UserError(
            f"{study}: kind '{config.kind}', `ifsq study` needs 'study'; use `ifsq {config.kind}`"
        )
    return config
