"""The card of an exported network: Markdown with the header that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from data_pipelines.views import shown_size
from ifsq_train.artifacts.pretrained import TOKENIZER_TYPE
from ifsq_train.config import TrainConfig

CARD = "README.md"
_PAPER = "2601.17124"

_TOKENIZER_USE = """from PIL import Image
from ifsq_train import Tokenizer

tokenizer = Tokenizer.from_pretrained("{folder}")
codes = tokenizer.encode(Image.open("image.png"))
image = tokenizer.decode(codes)"""

_GENERATOR_USE = """from ifsq_train import Generator

generator = Generator.from_pretrained("{folder}")
drawn = generator.sample([0, 1, 2], seed=0)
drawn.images[0].save("sample.png")"""


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        recipe: training recipe without places of this machine.
        header: of the checkpoint.
        facts: ``config.json``.
        parameters: how many the network has.
        license: identifier.
        evaluation: numbers of `ifsq evaluate` by name.
        final: numbers of the last logged step by name.
        picture: whether there is a preview.
    """

    recipe: TrainConfig
    header: Mapping[str, Any]
    facts: Mapping[str, Any]
    parameters: int
    license: str
    evaluation: Mapping[str, Any]
    final: Mapping[str, float]
    picture: bool


def model_card(card: CardFacts) -> str:
    """The text of README.md."""
    is_tokenizer = card.facts["model_type"] == TOKENIZER_TYPE
    what = "image tokenizer" if is_tokenizer else "class-conditional image generator"
    use = (_TOKENIZER_USE if is_tokenizer else _GENERATOR_USE).format(folder="path/to/this/folder")
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(card, is_tokenizer), sort_keys=False)}---",
        f"# {card.recipe.name}",
        f"An {what} trained with `ifsq-train`: {_kind(card)}, {card.parameters:,} parameters,"
        f" {card.facts['weights']} weights after {card.facts['step']:,} steps.",
        "![preview](preview.png)" if card.picture else "",
        _license(card.license),
        f"## Use\n\n```python\n{use}\n```",
        f"## Data\n\n{_data(card)}",
        "## Numbers\n\n" + _numbers(card),
        "## Training\n\nThe whole recipe is in `recipe.yaml`; fill in the paths of your"
        " machine.\n\n```bash\nifsq train recipe.yaml\n```\n\n" + _versions(card.header),
        f"Paper: [arXiv {_PAPER}](https://arxiv.org/abs/{_PAPER})."
        f" Fingerprint of the weights: `{card.facts['fingerprint']}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(card: CardFacts, is_tokenizer: bool) -> dict[str, Any]:
    task = "image-feature-extraction" if is_tokenizer else "unconditional-image-generation"
    return {
        "license": card.license,
        "library_name": "ifsq-train",
        "pipeline_tag": task,
        "tags": ["ifsq", card.recipe.task.kind, f"arxiv:{_PAPER}"],
    }


def _kind(card: CardFacts) -> str:
    if card.facts["model_type"] == TOKENIZER_TYPE:
        quantizer = card.facts["model"]["quantizer"]
        levels = quantizer.get("levels")
        return f"{quantizer['kind']} with levels {levels}" if levels else str(quantizer["kind"])
    height, width = card.facts["spec"]["grid"]
    return f"{card.recipe.task.kind} on a grid of {height} x {width}"


def _license(name: str) -> str:
    if name != "unknown":
        return ""
    return (
        "> No licence was named at export. Set `license` in the header above before you publish"
        " these weights."
    )


def _data(card: CardFacts) -> str:
    data = card.recipe.data
    facts = card.header.get("data") or {}
    lines = [f"- dataset: `{getattr(data, 'url', None) or 'a mixture, see the recipe'}`"]
    if "num_samples" in facts:
        lines.append(f"- samples: {facts['num_samples']:,}")
    if facts.get("digest"):
        lines.append(f"- digest of its manifest: `{facts['digest']}`")
    view = getattr(data, "view", None)
    if view is not None:
        lines.append(f"- view: `{view.kind}`, {shown_size(view.image_size)} px")
    lines.append(f"- global batch size: {data.global_batch_size}")
    return "\n".join(lines)


def _numbers(card: CardFacts) -> str:
    tables = []
    if card.evaluation:
        tables.append(_table("Evaluation (`ifsq evaluate`)", card.evaluation))
    if card.final:
        tables.append(_table("Last logged training step", card.final))
    return "\n\n".join(tables) or "None were given at export (`--evaluation result.json`)."


def _table(title: str, numbers: Mapping[str, Any]) -> str:
    scalars = {k: v for k, v in numbers.items() if isinstance(v, int | float)}
    rows = [f"| {name} | {value:.6g} |" for name, value in sorted(scalars.items())]
    return "\n".join([f"| {title} | |", "|---|---|", *rows])


def _versions(header: Mapping[str, Any]) -> str:
    versions = header.get("versions") or {}
    return "Versions: " + ", ".join(f"{name} {found}" for name, found in sorted(versions.items()))
