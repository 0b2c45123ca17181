"""The commands `ifsq data ...`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_pipelines.errors import UserError
from data_pipelines.storage.open import open_storage
from launchers.cli.options import Address, ImagePixels, Overwrite, both_sides, finite

if TYPE_CHECKING:
    from data_pipelines.images.packing.classes import ClassMap
    from data_pipelines.images.packing.options import PackArguments
    from data_pipelines.images.packing.parquet_files import ParquetColumns
    from data_pipelines.images.packing.shards import MapShards

app = typer.Typer(help="Pack, index, look at and verify datasets.", no_args_is_help=True)

MaxBad = Annotated[
    int,
    typer.Option(min=0, help="Images that may be lost, or lack a label where others have one."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Make this many shards at a time on Ray; without it, one here."),
]
NumClasses = Annotated[
    int | None, typer.Option(min=1, help="Integer labels are below this; found if left out.")
]
Classes = Annotated[
    Path | None,
    typer.Option(
        "--class-map", help="One class a line in label order, or JSON; sorted names if left out."
    ),
]


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="Folder of class folders with images, or of Parquet files.")
    ],
    dataset: Annotated[str, typer.Argument(help="Dataset folder to write (path or s3://).")],
    shard_megabytes: Annotated[float, typer.Option(callback=finite, min=0.01)] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the one global shuffle.")] = 0,
    max_bad_samples: MaxBad = 100,
    class_map: Classes = None,
    resize: Annotated[
        int | None, typer.Option(min=1, help="Store images with a longer short side at this one.")
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of those.")] = 95,
    files: Annotated[str, typer.Option(help="Parquet: which files, such as 'train-*'.")] = "*",
    image_column: Annotated[str, typer.Option(help="Parquet column of images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Of labels; '' for none.")] = "label",
    num_classes: NumClasses = None,
    workers: Workers = None,
    address: Address = None,
    overwrite: Overwrite = False,
) -> None:
    """Write images as WebDataset tar shards with a manifest; run again to finish it."""
    from data_pipelines.images.packing.parquet_files import ParquetColumns
    from data_pipelines.images.packing.resize import ResizeSpec
    from launchers.stages import pack_images, pack_parquet_files

    with _on_ray(workers, address) as map_shards:
        options: PackArguments = {
            "shard_bytes": int(shard_megabytes * 2**20),
            "seed": seed,
            "max_bad_samples": max_bad_samples,
            "resize": ResizeSpec(resize, quality) if resize else None,
            "map_shards": map_shards,
            "overwrite": overwrite,
        }
        numbers = _class_map(class_map)
        columns = ParquetColumns(image_column, label_column or None)
        if holds_parquet(source, files, columns):
            manifest = pack_parquet_files(
                source, dataset, columns=columns, pattern=files, class_map=numbers,
                num_classes=num_classes, **options,
            )  # fmt: skip
        else:
            manifest = pack_images(Path(source), dataset, class_map=numbers, **options)
    _print_info(manifest)


@app.command()
def index(
    tars: Annotated[str, typer.Argument(help="Folder of WebDataset tars; they are not touched.")],
    dataset: Annotated[
        str | None, typer.Argument(help="Where the manifest goes; beside the tars if left out.")
    ] = None,
    max_bad_samples: MaxBad = 100,
    class_map: Classes = None,
    num_classes: NumClasses = None,
    image_key: Annotated[
        str | None, typer.Option(help="Extension of the image among several: jpg, left.png.")
    ] = None,
    label_key: Annotated[
        str | None, typer.Option(help="Extension of the label's member, or its field in .json.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a manifest for existing WebDataset tars."""
    from launchers.stages import index_images

    with _on_ray(workers, address) as map_shards:
        manifest = index_images(
            tars,
            dataset,
            max_bad_samples=max_bad_samples,
            class_map=_class_map(class_map),
            num_classes=num_classes,
            image_key=image_key.lower().lstrip(".") if image_key else None,
            label_key=label_key.lstrip(".") if label_key else None,
            map_shards=map_shards,
            overwrite=overwrite,
        )
    _print_info(manifest)


@app.command()
def info(dataset: Annotated[str, typer.Argument(help="Image or token dataset.")]) -> None:
    """Say what a dataset holds."""
    from launchers.stages import open_any_dataset

    _print_info(open_any_dataset(dataset))


@app.command()
def verify(dataset: Annotated[str, typer.Argument(help="Image or token dataset.")]) -> None:
    """Check every checksum and count; exit code 1 if anything is damaged."""
    from launchers.stages import verify_any_dataset

    lines, intact = verify_any_dataset(dataset)
    for line in lines:
        typer.echo(line)
    if not intact:
        raise typer.Exit(1)


@app.command()
def preview(
    source: Annotated[str, typer.Argument(help="Recipe of a tokenizer, or an image dataset.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value changes of the recipe.")
    ] = None,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("preview.png"),
    step: Annotated[int, typer.Option(min=0, max=10**12, help="Which global batch.")] = 0,
    count: Annotated[int, typer.Option(min=1, max=400, help="At most this many images.")] = 32,
    view: Annotated[str, typer.Option(help="Of a dataset: kind of the view.")] = "adm_center",
    image_size: ImagePixels = "256",
) -> None:
    """Draw a batch as the model sees it, with keys and labels, as one picture."""
    from ifsq_train.config.load import list_recipes
    from ifsq_train.data.preview import dataset_config, preview_batch, recipe_config

    shipped = {name for name, _ in list_recipes()}
    if source in shipped or source.endswith((".yaml", ".yml")):
        config, seed = recipe_config(source, overrides or [])
    elif overrides:
        raise UserError(f"{source} is no recipe, so there is nothing to change: {overrides[0]!r}")
    else:
        size = both_sides("--image-size", image_size)
        config, seed = dataset_config(source, view, size, count), 0
    shown = preview_batch(config, seed, step, count, output)
    typer.echo(f"{shown} images of batch {step} in {output}")


def holds_parquet(source: str, files: str, columns: ParquetColumns) -> bool:
    """Whether a folder has Parquet files, anywhere in it; object storage must.

    Files without a column of images beside folders of images are what img2dataset knows of them.
    """
    from data_pipelines.images.packing.parquet_files import (
        choose_files,
        has_image_column,
        is_parquet,
    )
    from data_pipelines.images.packing.places import holds_images

    if "://" in source:
        return True
    storage = open_storage(source)
    if not any(is_parquet(path) for path in storage.list()):
        return False
    chosen = choose_files(storage, files)
    return has_image_column(storage, chosen, columns) or not holds_images(storage.list())


@contextlib.contextmanager
def _on_ray(workers: int | None, address: str | None) -> Iterator[MapShards | None]:
    if workers is None and address is None:
        yield None
        return
    from launchers.on_ray.shards import shards_on_ray

    if workers is None:
        raise UserError(f"--address {address} needs --workers, the shards to make at a time")
    with shards_on_ray(workers, address) as map_shards:
        yield map_shards


def _class_map(path: Path | None) -> ClassMap | None:
    from data_pipelines.images.packing.classes import read_class_map

    return read_class_map(path) if path is not None else None


def _print_info(dataset: Any) -> None:
    for key, value in dataset.summary().items():
        _echo(f"{key:20} {value}")
    if account := getattr(dataset, "facts", {}).get("account"):
        from data_pipelines.images.packing.account import account_of

        for line in account_of(account).lines(dataset.classes):
            _echo(line)


def _echo(line: str) -> None:
    """Names may hold characters that this terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(line.encode(encoding, "backslashreplace").decode(encoding))
