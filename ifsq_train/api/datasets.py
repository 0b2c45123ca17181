"""Datasets of this project as torch datasets, in the order that training sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import UserError
from data_pipelines.order.plan import SamplePlan
from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.format import TOKENS_JSON
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.views import choose_views
from ifsq_train.config import ImageDataConfig, TokenDataConfig
from ifsq_train.config.load import validate_model
from ifsq_train.data.base import Extras
from ifsq_train.data.images import ImageTrainData, open_images
from ifsq_train.data.tokens import open_tokens

Sample = dict[str, Any]


class _Rows(Protocol):
    """Samples as they are seen in their epochs."""

    def read(self, ids: NDArray[np.int64], epochs: NDArray[np.int64]) -> list[Sample]: ...


class PlannedDataset(Dataset[Sample]):
    """A dataset in the order in which a training run with the same settings sees it.

    Item i is the i-th sample of the epoch: a loader without shuffling and with the same batch size
    gives the global batches of training. Items are dictionaries with ``label`` (int, -1 where there
    is none), ``sample_id`` (int) and

    - ``image``: float32 [3, S, S] in [-1, 1], of image datasets;
    - ``tokens``: int64 [h, w, G], or ``latents``: float32 [C, h, w], of token datasets.

    Attributes:
        epoch: which one is read, from 0; see `set_epoch`.
    """

    def __init__(self, plan: SamplePlan, rows: _Rows) -> None:
        self._plan, self._rows = plan, rows
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Read another epoch: another order, other views.

        Raises:
            UserError: below 0.
        """
        if epoch < 0:
            raise UserError(f"epoch: found {epoch}; epochs are counted from 0")
        self.epoch = epoch

    @property
    def num_samples(self) -> int:
        """Samples of the dataset; an epoch leaves out what fills no whole batch."""
        return self._plan.num_samples

    def __len__(self) -> int:
        return self._plan.steps_per_epoch * self._plan.global_batch_size

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several items at once, as torch's loader asks for them."""
        wanted = np.asarray(indices, dtype=np.int64)
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"index {list(indices)}: the epoch has {len(self)} samples")
        numbers = self.epoch * len(self) + wanted
        return self._rows.read(self._plan.drawn(numbers), self._plan.drawn_epochs(numbers))


class _ImageRows:
    def __init__(self, data: ImageTrainData) -> None:
        self._data = data

    def read(self, ids: NDArray[np.int64], epochs: NDArray[np.int64]) -> list[Sample]:
        batch = self._data.show(ids, epochs).to_images()
        return [
            {"image": image, "label": int(label), "sample_id": int(one)}
            for image, label, one in zip(batch.images, batch.labels, ids, strict=True)
        ]


class _TokenRows:
    def __init__(self, dataset: TokenDataset, seed: int, kind: str) -> None:
        self._dataset, self._seed, self._kind = dataset, seed, kind

    def read(self, ids: NDArray[np.int64], epochs: NDArray[np.int64]) -> list[Sample]:
        dataset, grid = self._dataset, self._dataset.spec.grid
        views = choose_views(self._seed, epochs, ids, dataset.num_views)
        latents = self._kind == "latents"
        batch = dataset.read(ids, views, dataset.latent_columns if latents else ())
        if latents:
            values = dataset.latents_of(batch, normalized=False)
        else:
            values = batch.tokens.reshape(len(ids), *grid, -1)
        return [
            {self._kind: torch.as_tensor(value), "label": int(label), "sample_id": int(one)}
            for value, label, one in zip(values, batch.labels, ids, strict=True)
        ]


def load_dataset(
    url: str | Path,
    *,
    view: Mapping[str, Any] | None = None,
    codes: Literal["tokens", "latents"] = "tokens",
    batch_size: int = 1,
    seed: int = 0,
    shuffle_window: int = 16384,
    max_bad_samples: int = 0,
) -> PlannedDataset:
    """Open a dataset of `ifsq data pack`, `ifsq data index` or `ifsq precompute`.

    Args:
        url: folder or s3:// address.
        view: of image datasets, as in recipes: ``{"kind": "adm_center", "image_size": 256}``.
        codes: of token datasets: the tokens, or the latents they stand for (not normalized; of a
            VAE the means).
        batch_size: the order is that of a run with this global batch size.
        seed: and with this seed.
        shuffle_window: and with this window.
        max_bad_samples: unreadable images tolerated.

    Raises:
        UserError: no dataset there, or a damaged one; a view that is missing, unknown or out of
            place; fewer samples than one batch.
    """
    if codes not in ("tokens", "latents"):
        raise UserError(f"codes: found '{codes}'; use tokens or latents")
    common = {"url": str(url), "global_batch_size": batch_size, "shuffle_window": shuffle_window}
    if open_storage(str(url)).exists(TOKENS_JSON):
        if view is not None:
            raise UserError(f"{url} is a token dataset; its views were chosen at precompute")
        return _tokens(common, codes, seed)
    if view is None:
        raise UserError(
            f"{url}: images need a view; give one such as"
            ' view={"kind": "adm_center", "image_size": 256}'
        )
    further = {"view": dict(view), "max_bad_samples": max_bad_samples}
    config = _checked(ImageDataConfig, {**common, **further})
    budget = ErrorBudget(max_bad_samples)
    data = open_images(config, seed=seed, budget=budget, device=torch.device("cpu"))
    assert isinstance(data.plan, SamplePlan), "one dataset has no mixture's plan"
    return PlannedDataset(data.plan, _ImageRows(data))


def _tokens(values: dict[str, Any], codes: str, seed: int) -> PlannedDataset:
    config = _checked(TokenDataConfig, values)
    data = open_tokens(config, seed, Extras(), torch.device("cpu"))
    if codes == "tokens" and not data.dataset.spec.has_tokens:
        raise UserError(f"{config.url} has latents only; use codes='latents'")
    return PlannedDataset(data.plan, _TokenRows(data.dataset, seed, codes))


def _checked(kind: type[Any], values: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter

    return validate_model(TypeAdapter(kind), values, "load_dataset")
