"""The `ifsq` command. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from data_pipelines.errors import UserError, as_memory_error, as_user_error
from data_pipelines.storage.credentials import (
    HOW_INSTEAD,
    has_credentials,
    without_credentials,
)
from ifsq_train.distributed.interruption import Interrupted
from launchers.cli import checkpoint as cli_checkpoint
from launchers.cli import data as cli_data
from launchers.cli import data_copy
from launchers.cli import plan as cli_plan
from launchers.cli import study as cli_study
from launchers.cli.codes import export_codes, import_codes
from launchers.cli.export import export
from launchers.cli.first_steps import check_weights, digits, doctor, init
from launchers.cli.jobs import register as register_job_commands
from launchers.cli.monitor import monitor
from launchers.cli.options import (
    Address,
    AllowChange,
    Loading,
    Overrides,
    Overwrite,
    Plugins,
    RecipeName,
    finite,
    gpu_count,
    loading_config,
)
from launchers.cli.reports import compare, report
from launchers.cli.stopping import Commands, Stopped, leave, stopped_by_sigterm

_LONGEST_LINE = 1500
"""Characters of an error."""

app = typer.Typer(
    name="ifsq",
    cls=Commands,
    help="Train iFSQ image tokenizers and the generators built on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
weights_app = typer.Typer(help="Published weight files.", no_args_is_help=True)
weights_app.command("check")(check_weights)
app.add_typer(weights_app, name="weights")
config_app = typer.Typer(help="Show, check and describe recipes.", no_args_is_help=True)
app.add_typer(cli_data.app, name="data")
cli_data.app.command("copy")(data_copy.copy)
cli_data.app.command("import-codes")(import_codes)
cli_data.app.command("export-codes")(export_codes)
cli_data.app.command("digits")(digits)
app.add_typer(config_app, name="config")
app.add_typer(cli_checkpoint.app, name="checkpoint")
app.add_typer(cli_study.app, name="study")
app.command("plan")(cli_plan.plan)
register_job_commands(app)
app.command()(export)
app.command()(monitor)
app.command()(report)
app.command()(compare)
app.command()(doctor)
app.command()(init)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    from ifsq_train.versions import source_revision

    revision = source_revision()
    typer.echo(f"ifsq {metadata.version('ifsq-train')}" + (f" ({revision})" if revision else ""))
    raise typer.Exit()


@app.callback()
def _before_every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version, in a checkout with its commit, and exit.",
        ),
    ] = False,
) -> None:
    from ifsq_train.log import log_to_terminal

    log_to_terminal()


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    plugin: Plugins = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers, one per GPU on a cluster.")] = 1,
    min_workers: Annotated[
        int | None, typer.Option(min=1, help="Elastic: go on with as few while nodes are missing.")
    ] = None,
    gpus_per_worker: Annotated[
        str, typer.Option(help="0 trains on the CPU; auto takes the GPUs that are there.")
    ] = "0",
    cpus_per_worker: Annotated[float, typer.Option(callback=finite, min=0.1)] = 1,
    address: Address = None,
    max_failures: Annotated[int, typer.Option(min=0, help="Restarts before giving up.")] = 3,
    launcher: Annotated[str, typer.Option(help="ray, or local: one worker in-process.")] = "ray",
    loading: Loading = None,
    allow_change: AllowChange = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a tokenizer or a generator; run again to resume."""
    from ifsq_train.config import LaunchConfig, TrainConfig

    config = _load(recipe, overrides, TrainConfig, "train")
    if min_workers is not None and min_workers > workers:
        raise UserError(
            f"--min-workers {min_workers} is more than --workers {workers}; use at most {workers}"
        )
    launch = LaunchConfig(
        num_workers=workers,
        min_workers=min_workers,
        gpus_per_worker=gpu_count(gpus_per_worker),
        cpus_per_worker=cpus_per_worker,
        address=address,
        max_failures=max_failures,
        loading=loading_config(loading),
        allow_changes=tuple(allow_change or ()),
    )
    if launcher == "local":
        from launchers.local import train_locally

        if workers != 1:
            raise UserError(
                f"--launcher local runs one worker, found --workers {workers}; use --launcher ray"
            )
        result = train_locally(config, launch, overwrite=overwrite)
    elif launcher == "ray":
        from launchers.on_ray.train import train_on_ray

        result = train_on_ray(config, launch, overwrite=overwrite)
    else:
        raise UserError(f"--launcher '{launcher}' is unknown; use ray or local")
    typer.echo(
        f"{config.name}: {result['steps']} steps, final loss {result['final_loss']:.6g},"
        f" {result['seconds']:.0f} s; results in {config.output}"
    )


@app.command()
def precompute(
    recipe: RecipeName,
    overrides: Overrides = None,
    plugin: Plugins = None,
    actors: Annotated[
        int,
        typer.Option(min=0, help="Encoders, one per GPU on a cluster; 0 encodes in this process."),
    ] = 1,
    gpus_per_actor: Annotated[
        float, typer.Option(callback=finite, min=0, help="Below 1 they share one.")
    ] = 0,
    readers: Annotated[int, typer.Option(min=0, help="Decode in so many other actors.")] = 0,
    address: Address = None,
    verify: Annotated[
        int, typer.Option(min=0, help="Only encode so many samples again and compare.")
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Encode a dataset into token shards; run again to finish what was interrupted."""
    from ifsq_train.config import PrecomputeConfig
    from launchers.stages import precompute_tokens, verify_precompute

    config = _load(recipe, overrides, PrecomputeConfig, "precompute")
    if verify:
        lines, same = verify_precompute(config, verify)
        for line in lines:
            typer.echo(line)
        raise typer.Exit(0 if same else 1)
    report = precompute_tokens(
        config,
        num_actors=actors,
        gpus_per_actor=gpus_per_actor,
        num_readers=readers,
        address=address,
        overwrite=overwrite,
    )
    typer.echo(f"{report.rows} rows of {report.expected_rows} in {config.output}")


@app.command()
def sample(
    recipe: RecipeName,
    overrides: Overrides = None,
    plugin: Plugins = None,
    actors: Annotated[
        int, typer.Option(min=0, help="Samplers on Ray, one per GPU; 0 draws in this process.")
    ] = 0,
    gpus_per_actor: Annotated[float, typer.Option(callback=finite, min=0)] = 0,
    address: Address = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw images from a trained generator; run again to finish what was interrupted."""
    from ifsq_train.config import SampleConfig
    from launchers.stages import sample_images

    config = _load(recipe, overrides, SampleConfig, "sample")
    count = sample_images(
        config,
        num_actors=actors,
        gpus_per_actor=gpus_per_actor,
        address=address,
        overwrite=overwrite,
    )
    typer.echo(f"{count} images in {config.output}")


@app.command()
def evaluate(
    recipe: RecipeName,
    overrides: Overrides = None,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure reconstructions, and samples if the recipe names some."""
    from ifsq_train.config import EvaluateConfig
    from launchers.reports.measures import measure_lines
    from launchers.stages import evaluate_images

    config = _load(recipe, overrides, EvaluateConfig, "evaluate")
    result = evaluate_images(config, overwrite=overwrite)
    for line in measure_lines(result):
        typer.echo(line)
    typer.echo(f"all numbers: {config.output}")


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder of class folders with images; digits if left out.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/demo"),
    workers: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """The whole pipeline on small real images: pack, train, precompute, train, sample, report."""
    from launchers.demo.pipeline import run_demo

    result = run_demo(output, data, workers)
    typer.echo(f"report: {output / 'report.html'} ({result['wall_seconds']:.0f} s)")


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from ifsq_train.config.load import list_recipes

    for name, summary in list_recipes():
        typer.echo(f"{name:40} {summary}")


@config_app.command("show")
def config_show(recipe: RecipeName, overrides: Overrides = None, plugin: Plugins = None) -> None:
    """Print the recipe as it will run: merged, resolved, defaults filled in."""
    import yaml

    from ifsq_train.config import to_dict
    from ifsq_train.config.load import load_recipe

    config = load_recipe(recipe, overrides or [])
    typer.echo(yaml.safe_dump(to_dict(config), sort_keys=False).rstrip())


@config_app.command("validate")
def config_validate(
    recipe: RecipeName, overrides: Overrides = None, plugin: Plugins = None
) -> None:
    """Check a recipe; reports every fault."""
    from ifsq_train.artifacts.recipe_faults import recipe_faults
    from ifsq_train.config.load import load_recipe

    config = load_recipe(recipe, overrides or [], recipe_faults)
    typer.echo(f"{recipe}: valid {config.kind} recipe")


@config_app.command("schema")
def config_schema(plugin: Plugins = None) -> None:
    """Print the JSON schema of recipes."""
    from ifsq_train.config.load import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=1))


def _load(recipe: str, overrides: list[str] | None, kind: type, name: str) -> Any:
    from ifsq_train.artifacts.recipe_faults import recipe_faults
    from ifsq_train.config.load import load_recipe

    config = load_recipe(recipe, overrides or [], recipe_faults)
    if not isinstance(config, kind):
        raise UserError(
            f"{recipe}: kind '{config.kind}', `ifsq {name}` needs '{name}';"
            f" use `ifsq {config.kind}`"
        )
    return config


def main() -> None:
    """Entry point: user errors are one clear line and exit code 2, never a traceback."""
    try:
        for word in sys.argv[1:]:
            if has_credentials(word):
                raise UserError(f"{without_credentials(word)}: {HOW_INSTEAD}")
        with stopped_by_sigterm():
            app(standalone_mode=True)
    except UserError as error:
        _refuse(error)
    except (Stopped, KeyboardInterrupt) as stopped:
        leave(stopped if isinstance(stopped, Stopped) else Stopped(signal.SIGINT), sys.argv[1:])
    except Interrupted as interrupted:
        sys.stderr.write(f"stopped: {interrupted}\n")
        sys.exit(143)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        found = as_user_error(error, passing=True)
        if found is None:
            raise
        _refuse(found)
    except Exception as error:
        if str(error).startswith("Symlink loop from "):  # as pathlib has it before Python 3.13
            _refuse(UserError(f"{error}: links lead in a circle; remove one"))
        if type(error).__name__ == "TrainingFailed":
            sys.stderr.write(f"error: {without_credentials(str(error))}\n")
            sys.exit(1)
        if (memory := as_memory_error(error)) is not None:
            _refuse(memory)
        raise


def _refuse(error: UserError) -> NoReturn:
    text = without_credentials(str(error))
    sys.stderr.write("".join(f"error: {_for_a_terminal(line)}\n" for line in text.splitlines()))
    sys.exit(2)


def _for_a_terminal(line: str) -> str:
    """Without what a terminal would obey, and no longer than can be read."""
    plain = "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
    return plain if len(plain) <= _LONGEST_LINE else f"{plain[:_LONGEST_LINE]}..."


if __name__ == "__main__":
    main()
