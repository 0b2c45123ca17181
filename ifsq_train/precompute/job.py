"""A dataset of images to a dataset of tokens, exactly once.

The work is cut into items: fixed ranges of source sample ids. What an item becomes is a pure
function of the source's bytes, the tokenizer and the view, so any process may make it, at any
time, and twice does no harm: a shard is created under its final name only if it is not there yet.
The manifest is written last, after every shard was read back. So whatever is killed whenever, a
further run ends with the same bytes as one that was never disturbed.

`run_precompute_local` does it in this process; `launchers.on_ray.precompute` on many.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from data_pipelines.errors import UserError
from data_pipelines.manifest import ShardManifest
from data_pipelines.storage.open import open_storage
from data_pipelines.storage.outputs import claim
from data_pipelines.tokens.features import feature_columns
from data_pipelines.tokens.format import ExtraColumn, TokenSpec
from data_pipelines.tokens.latents import LATENT_LOGVAR, LATENT_MEAN
from data_pipelines.tokens.writer import TOKEN_WRITER
from ifsq_train.artifacts.token_meaning import token_grid
from ifsq_train.config import PrecomputeConfig
from ifsq_train.plugins.sources import open_images_of
from ifsq_train.precompute.encoder import TokenEncoder, open_encoder
from ifsq_train.precompute.pixels import ViewPixels
from ifsq_train.precompute.progress import (
    ItemResult,
    OnItem,
    PrecomputeReport,
    PrecomputeRun,
    published_report,
    with_growth,
)
from ifsq_train.precompute.stream import (
    DecodePixels,
    EncodeStream,
    FinishItem,
    ItemFeed,
    ListedItems,
    publishing,
)

MAX_SHARD_BYTES = 4 << 30
"""A shard is held in memory twice while it is made."""


def run_precompute_local(
    config: PrecomputeConfig,
    on_item: OnItem | None = None,
    *,
    device: str | None = None,
    overwrite: bool = False,
) -> PrecomputeReport:
    """Do the whole job in this process, or what is left of it.

    Args:
        on_item: called after every item.
        device: "cpu" or "cuda"; None takes the GPU where there is one.
        overwrite: remove tokens that were written to the folder before.

    Raises:
        UserError: something in the recipe or its data, or the output folder holds another job.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    storage = open_storage(config.output)
    claim(storage, TOKEN_WRITER, overwrite=overwrite)
    encoder = ItemEncoder(config, device)
    try:
        report = published_report(storage, encoder.spec, config.decoder)
        if report is not None:
            return report
        run = PrecomputeRun(
            storage, encoder.spec, config.max_bad_samples, on_item, notes=notes_of(config)
        )
        for items in run.rounds():
            for result in encoder.make(ListedItems(items), publishing(storage)):
                run.done(result)
        return run.finish()
    finally:
        encoder.close()


def notes_of(config: PrecomputeConfig) -> dict[str, str]:
    """What a dataset says of its making besides its spec."""
    return {"tokenizer_weights": config.weights}


def preflight(config: PrecomputeConfig) -> TokenSpec:
    """Find the user's mistakes before a cluster is asked for anything.

    Returns:
        The job, with the recipe's word for the decoder and as if on a CPU.

    Raises:
        UserError: missing dataset, tokenizer or teacher, or parts that do not fit together.
    """
    encoder = open_encoder(config, "cpu")
    manifest = open_images_of(config.source)
    spec = describe_job(config, manifest, encoder, config.decoder)
    return with_growth(open_storage(config.output), spec, manifest)


def describe_job(
    config: PrecomputeConfig, manifest: ShardManifest, encoder: TokenEncoder, decoder: str
) -> TokenSpec:
    """Everything that decides the bytes of a job's shards.

    Raises:
        UserError: the view does not fit the tokenizer, or shards would be too large.
    """
    spec = TokenSpec(
        tokenizer_fingerprint=encoder.fingerprint,
        quantizer=encoder.quantizer,
        codebook_sizes=encoder.codebook_sizes,
        grid=token_grid(config.view.size, encoder.downsample_ratio),
        digit_order=encoder.digit_order,
        view=config.view.to_dict(),
        num_views=config.view.num_views,
        view_seed=config.view_seed,
        source_digest=manifest.digest,
        num_samples=manifest.num_samples,
        samples_per_shard=config.samples_per_shard,
        latent_channels=encoder.latent_channels,
        batch_size=config.batch_size,
        decoder=decoder,
        numerics=encoder.numerics,
        extra_columns=_extra_columns(config, encoder),
        digits=encoder.digits,
        teacher=_teacher(config, encoder),
    )
    _check_shard_bytes(spec)
    return spec


def _extra_columns(config: PrecomputeConfig, encoder: TokenEncoder) -> dict[str, ExtraColumn]:
    height, width = token_grid(config.view.size, encoder.downsample_ratio)
    columns: dict[str, ExtraColumn] = {}
    if config.latents != "auto" or not encoder.codebook_sizes:
        dtype = "float16" if config.latents == "fp16" else "float32"
        column = ExtraColumn(dtype, (encoder.latent_channels, height, width))
        columns[LATENT_MEAN] = column
        if encoder.has_posterior:
            columns[LATENT_LOGVAR] = column
    if config.teacher is not None and encoder.teacher is not None:
        _, dim = encoder.teacher
        columns |= feature_columns(config.teacher.precision, height * width, dim)
    return columns


def _teacher(config: PrecomputeConfig, encoder: TokenEncoder) -> dict[str, str | int] | None:
    if config.teacher is None or encoder.teacher is None:
        return None
    fingerprint, dim = encoder.teacher
    return {
        "kind": "dinov2",
        "size": config.teacher.size,
        "fingerprint": fingerprint,
        "dim": dim,
        "precision": config.teacher.precision,
    }


def _check_shard_bytes(spec: TokenSpec) -> None:
    row = sum(column.row_bytes for column in spec.extra_columns.values())
    per_sample = row * spec.num_views
    samples = min(spec.samples_per_shard, spec.num_samples)
    if per_sample * samples > MAX_SHARD_BYTES:
        raise UserError(
            f"samples_per_shard={spec.samples_per_shard} makes shards of"
            f" {per_sample * samples / 2**30:.1f} GiB with these columns; use at most"
            f" {max(1, MAX_SHARD_BYTES // per_sample)}"
        )


class ItemEncoder:
    """Source, tokenizer and teacher of a job, opened once; makes items.

    Attributes:
        spec: what the items are made to, as of this machine.
    """

    def __init__(
        self,
        config: PrecomputeConfig,
        device: str = "cpu",
        decode_threads: int | None = None,
        pixels_on: str | None = None,
    ) -> None:
        """Open everything.

        Args:
            device: of the encoder.
            decode_threads: None takes the CPUs this process may use.
            pixels_on: where images are decoded; `device` if not given.

        Raises:
            UserError: missing dataset, tokenizer or teacher, or parts that do not fit together.
        """
        self._config = config
        self._encoder = open_encoder(config, device)
        self._pixels = ViewPixels(config, pixels_on or device, decode_threads)
        self._readers = ThreadPoolExecutor(self._pixels.num_readers, "read")
        manifest = self._pixels.manifest
        spec = describe_job(config, manifest, self._encoder, self._pixels.decoder_name)
        self.spec = with_growth(open_storage(config.output), spec, manifest)
        rows_per_item = config.samples_per_shard * config.view.num_views
        # Where every item fills its batches, nothing rests on where in a batch an image lies.
        self._batches_cross_items = bool(
            rows_per_item % config.batch_size
        ) and not self._encoder.position_matters(config.view.size)

    def make(
        self, feed: ItemFeed, finish: FinishItem, decode: DecodePixels | None = None
    ) -> Iterator[ItemResult]:
        """Encode and finish items until the feed ends.

        Args:
            finish: what is done with an item's rows, such as `publishing(storage)`.
            decode: begins reading a range of rows; None does it in threads of this process.

        Raises:
            DataError: see `EncodeStream.run`.
        """
        stream = EncodeStream(
            self.spec,
            self._encoder,
            decode or (lambda rows: self._readers.submit(self._pixels.decode, rows)),
            finish,
            self._config.max_bad_samples,
            self._batches_cross_items,
        )
        return stream.run(feed)

    def close(self) -> None:
        """Stop reading and decoding."""
        self._readers.shutdown(cancel_futures=True)
        self._pixels.close()
