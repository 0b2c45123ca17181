"""What token ids mean: digit table, grid and quantizer of a tokenizer or token dataset."""

from __future__ import annotations

from data_pipelines.errors import UserError
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.tokens.latents import DigitTable
from data_pipelines.views import Size, shown_size
from ifsq_train.artifacts.networks import quantizer_from_spec
from ifsq_train.artifacts.trained import TrainedTokenizer, load_tokenizer, load_tokenizer_of
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.models.quantizers.base import Quantizer


def quantizer_of(spec: TokenSpec, tokenizer: str | None) -> Quantizer:
    """What turns the tokens of a dataset into latents.

    Args:
        spec: of the dataset.
        tokenizer: run folder or checkpoint; only needed for learned codebooks.

    Raises:
        UserError: a learned codebook without a tokenizer, or of another one.
    """
    quantizer = quantizer_from_spec(spec.quantizer)
    if quantizer is not None:
        return quantizer
    if tokenizer is None:
        raise UserError(
            f"tokens of kind '{spec.quantizer['kind']}' become latents through a learned"
            " codebook; name data.tokenizer or task.tokenizer"
        )
    trained = load_tokenizer_of(tokenizer, spec.tokenizer_fingerprint)
    if trained.fingerprint != spec.tokenizer_fingerprint:
        raise UserError(
            f"{tokenizer} is tokenizer {trained.fingerprint[:12]}, the tokens come from"
            f" {spec.tokenizer_fingerprint[:12]}; name that one"
        )
    return trained.network.quantize


def token_grid(size: Size, downsample_ratio: int, key: str = "view.image_size") -> tuple[int, int]:
    """Height and width in tokens of an image.

    Args:
        size: height and width in pixels.
        downsample_ratio: pixels per token and side.
        key: of the recipe, for messages.

    Raises:
        UserError: a side is not a whole number of tokens.
    """
    height, width = (side // downsample_ratio for side in size)
    fitting = tuple(max(cells, 1) * downsample_ratio for cells in (height, width))
    if fitting != size:
        raise UserError(
            f"{key}={shown_size(size)} is not a multiple of the tokenizer's"
            f" {downsample_ratio} pixels per token; use {shown_size(fitting)}"
        )
    return height, width


def spec_of_tokens(tokens: TokenSpec) -> GeneratorSpec:
    """What a generator trained on a token dataset speaks, statistics of latents aside."""
    return GeneratorSpec(
        (tokens.grid[0], tokens.grid[1]),
        tuple(tokens.codebook_sizes),
        tokens.latent_channels,
        tokens.tokenizer_fingerprint,
    )


def spec_of_images(tokenizer: TrainedTokenizer, grid: tuple[int, int]) -> GeneratorSpec:
    """What a generator trained on images of this grid of tokens speaks."""
    quantizer = tokenizer.network.quantize
    return GeneratorSpec(
        grid, tuple(quantizer.codebook_sizes), quantizer.num_channels, tokenizer.fingerprint
    )


def spec_of_tokenizer(path: str, size: Size, samples_per_shard: int) -> TokenSpec:
    """What tokens of a tokenizer are, for tokens that were made elsewhere: one view of one sample.

    Raises:
        UserError: no complete checkpoint of a tokenizer, or it has no tokens.
    """
    network = load_tokenizer(path).network
    quantizer, spec = network.quantize, network.quantize.spec()
    if not quantizer.codebook_sizes:
        raise UserError(f"{path}: a bottleneck of kind '{spec['kind']}' has no tokens")
    return TokenSpec(
        tokenizer_fingerprint=network.fingerprint(),
        quantizer=spec,
        codebook_sizes=tuple(quantizer.codebook_sizes),
        grid=token_grid(size, network.downsample_ratio),
        digit_order=spec.get("digit_order", "little"),
        view={"kind": "imported", "image_size": size[0] if size[0] == size[1] else list(size)},
        num_views=1,
        view_seed=0,
        source_digest="",
        num_samples=1,
        samples_per_shard=samples_per_shard,
        latent_channels=quantizer.num_channels,
        batch_size=1,
        decoder="",
        numerics="",
        digits=digit_table(quantizer),
    )


def digit_table(quantizer: Quantizer) -> DigitTable | None:
    """How tokens become latents channel by channel; None where they do not (vq, continuous)."""
    digits = quantizer.digit_table()
    return None if digits is None else DigitTable(*digits)
