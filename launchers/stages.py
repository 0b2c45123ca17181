"""The stages around training: thin calls with a progress line, for the commands and the demo."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from data_pipelines.errors import UserError
from data_pipelines.manifest import MANIFEST_JSON, ShardManifest
from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.format import JOB_JSON, TOKENS_JSON
from data_pipelines.tokens.reader import TokenDataset

if TYPE_CHECKING:
    from collections.abc import Callable

    from data_pipelines.images.packing.classes import ClassMap
    from data_pipelines.images.packing.options import PackArguments
    from data_pipelines.images.packing.parquet_files import ParquetColumns
    from data_pipelines.images.packing.shards import MapShards
    from ifsq_train.config import EvaluateConfig, PrecomputeConfig, SampleConfig
    from ifsq_train.precompute.progress import PrecomputeReport


def pack_images(
    source: Path,
    dataset: str,
    *,
    class_map: ClassMap | None = None,
    keep: Callable[[str], bool] | None = None,
    **options: Unpack[PackArguments],
) -> ShardManifest:
    """Image folder to tar shards with a manifest; see `data_pipelines.images.pack.pack_folder`."""
    from data_pipelines.images.packing.pack import pack_folder

    with _progress("images", "pack") as show:
        options["on_progress"] = lambda done, total: show(done, total or done)
        return pack_folder(source, dataset, class_map=class_map, keep=keep, **options)


def pack_parquet_files(
    source: str,
    dataset: str,
    *,
    columns: ParquetColumns,
    pattern: str = "*",
    class_map: ClassMap | None = None,
    num_classes: int | None = None,
    **options: Unpack[PackArguments],
) -> ShardManifest:
    """Parquet files to tar shards; see `data_pipelines.images.pack.pack_parquet`."""
    from data_pipelines.images.packing.pack import pack_parquet

    with _progress("images", "pack") as show:
        options["on_progress"] = lambda done, total: show(done, total or done)
        return pack_parquet(
            source, dataset, columns=columns, pattern=pattern, class_map=class_map,
            num_classes=num_classes, **options,
        )  # fmt: skip


def index_images(
    tars: str,
    dataset: str | None,
    *,
    max_bad_samples: int,
    class_map: ClassMap | None = None,
    num_classes: int | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    map_shards: MapShards | None = None,
    overwrite: bool = False,
) -> ShardManifest:
    """Existing tars to a manifest; see `data_pipelines.images.index.index_tars`."""
    from data_pipelines.images.packing.index import index_tars

    return index_tars(
        tars, dataset, class_map=class_map, num_classes=num_classes, image_key=image_key,
        label_key=label_key, max_bad_samples=max_bad_samples, map_shards=map_shards,
        overwrite=overwrite,
    )  # fmt: skip


def held_out(name: str, percent: int = 20) -> bool:
    """Whether an image is measured on rather than trained on; decided by its path alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "little") % 100 < percent


def open_any_dataset(url: str) -> ShardManifest | TokenDataset:
    """The image or token dataset at `url`.

    Raises:
        DataError: there is none, or it is damaged or unfinished.
    """
    if holds_tokens(url):
        return TokenDataset.open(url)
    return ShardManifest.open(url)


def verify_any_dataset(url: str) -> tuple[list[str], bool]:
    """Check every byte of a dataset; lines for the user, and whether it is intact."""
    from data_pipelines.images.verify import verify_dataset
    from data_pipelines.tokens.verify import verify_tokens

    report = verify_tokens(url) if holds_tokens(url) else verify_dataset(url)
    return str(report).splitlines(), report.ok


def holds_tokens(url: str) -> bool:
    """Whether the folder is a token dataset, finished or not.

    Raises:
        UserError: nothing is there at all.
    """
    storage = open_storage(url)
    if storage.exists(TOKENS_JSON) or storage.exists(JOB_JSON):
        return True
    if not storage.exists(MANIFEST_JSON) and not storage.list():
        raise UserError(
            f"{storage.url} holds no dataset; make one with `ifsq data pack`, `ifsq data index`"
            " or `ifsq precompute`"
        )
    return False


def precompute_tokens(
    config: PrecomputeConfig,
    *,
    num_actors: int,
    gpus_per_actor: float,
    address: str | None,
    num_readers: int = 0,
    overwrite: bool = False,
) -> PrecomputeReport:
    """Encode a dataset with a progress line: on Ray, or in this process with 0 actors."""
    if not num_actors:
        from ifsq_train.precompute.job import run_precompute_local

        with _progress("shards", "precompute") as show:
            return run_precompute_local(
                config, lambda done, total, _: show(done, total), overwrite=overwrite
            )
    from launchers.on_ray.precompute import precompute_on_ray

    return precompute_on_ray(
        config,
        num_actors=num_actors,
        gpus_per_actor=gpus_per_actor,
        num_readers=num_readers,
        address=address,
        overwrite=overwrite,
        show_progress=True,
    )


def verify_precompute(config: PrecomputeConfig, num_samples: int) -> tuple[list[str], bool]:
    """Encode random samples again; lines for the user, and whether every value is the same."""
    from ifsq_train.precompute.check import check_sample

    report = check_sample(config, num_samples)
    return str(report).splitlines(), report.ok


def sample_images(
    config: SampleConfig,
    *,
    num_actors: int = 0,
    gpus_per_actor: float = 0,
    address: str | None = None,
    overwrite: bool = False,
) -> int:
    """Draw images with a progress line, in this process or on actors; returns their number."""
    with _progress("images", "sample") as show:
        if not num_actors:
            from ifsq_train.sampling.draw import draw_samples

            return draw_samples(config, on_batch=show, overwrite=overwrite)
        from launchers.on_ray.sample import sample_on_ray

        return sample_on_ray(
            config,
            num_actors=num_actors,
            gpus_per_actor=gpus_per_actor,
            address=address,
            on_batch=show,
            overwrite=overwrite,
        )


def evaluate_images(config: EvaluateConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Measure with a progress line; see `ifsq_train.evaluate.evaluate`."""
    from ifsq_train.evaluation.evaluate import evaluate

    with _progress("images", "evaluate") as show:
        return evaluate(config, on_batch=show, overwrite=overwrite)


@contextmanager
def _progress(unit: str, label: str) -> Iterator[Callable[..., None]]:
    """A function (done, total, **shown) that shows a progress line."""
    from ifsq_train.metrics.progress import ProgressLine

    lines: list[ProgressLine] = []

    def show(done: int, total: int, **shown: float) -> None:
        if not lines:
            lines.append(ProgressLine(total, unit, label))
        lines[0].update(done, **shown)

    try:
        yield show
    finally:
        for line in lines:
            line.close()
