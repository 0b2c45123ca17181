"""Drawing a set of samples: each is its own, none is lost or drawn twice, all formats agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.open import open_storage
from ifsq_train.sampling.draw import Samples, draw_samples, read_samples
from ifsq_train.sampling.files import image_grid
from tests.support.generator_parts import CLASSES, make_generators, sampling

pytestmark = pytest.mark.heavy

KINDS = ["autoregressive", "diffusion"]


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_generators(tmp_path_factory.mktemp("generators"))


@pytest.fixture(scope="module")
def undisturbed(
    generators: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Finished sets by kind; not to be changed."""
    folder = tmp_path_factory.mktemp("samples")
    for kind in KINDS:
        draw_samples(sampling(generators, kind, folder / kind))
    return {kind: folder / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_what_evaluators_read(undisturbed: dict[str, Path], kind: str) -> None:
    with np.load(undisturbed[kind] / "samples.npz") as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    assert images.shape == (4 * CLASSES, 16, 16, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len({image.tobytes() for image in images}) == len(images)
    assert Image.open(undisturbed[kind] / "preview.png").size == (64, 48)
    assert not list((undisturbed[kind] / "parts").glob("*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_its_batch(
    generators: dict[str, str], undisturbed: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    draw_samples(sampling(generators, kind, tmp_path, batch_size=5))
    found, expected = (
        read_samples(folder).images.astype(int) for folder in (tmp_path, undisturbed[kind])
    )
    # Other batch sizes round the networks' sums differently.
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_set_is_finished_not_begun_again(
    generators: dict[str, str], undisturbed: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    config = sampling(generators, kind, tmp_path)

    def stop(done: int, total: int) -> None:
        assert total == 12
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_samples(config, stop)
    with pytest.raises(DataError, match="holds no finished samples"):
        read_samples(tmp_path)
    steps: list[int] = []
    draw_samples(config, lambda done, _: steps.append(done))
    assert steps == [9, 12]
    assert (tmp_path / "samples.npz").read_bytes() == (
        undisturbed[kind] / "samples.npz"
    ).read_bytes()
    again: list[int] = []
    assert draw_samples(config, lambda done, _: again.append(done)) == 12
    assert again == []


def test_other_settings_begin_anew(generators: dict[str, str], tmp_path: Path) -> None:
    """Parts of another seed must never end up in a set."""
    config = sampling(generators, "diffusion", tmp_path)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_samples(config, stop)
    other = config.model_copy(update={"seed": 1})
    steps: list[int] = []
    draw_samples(other, lambda done, _: steps.append(done))
    assert steps == [3, 6, 9, 12]
    first = read_samples(tmp_path)
    draw_samples(config)
    assert not np.array_equal(first.images, read_samples(tmp_path).images)


@pytest.mark.parametrize("kind", ["png", "webp", "tar"])
def test_every_format_holds_the_same_samples(
    generators: dict[str, str], undisturbed: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    draw_samples(sampling(generators, "diffusion", tmp_path, format=kind))
    found, expected = read_samples(tmp_path), read_samples(undisturbed["diffusion"])
    assert np.array_equal(found.images, expected.images)
    assert np.array_equal(found.labels, expected.labels)
    assert found.facts["sha256"] == expected.facts["sha256"]
    # Back to npz in the same folder: nothing of the other format stays.
    draw_samples(sampling(generators, "diffusion", tmp_path))
    left = [path.name for path in tmp_path.rglob("*") if path.suffix in (".webp", ".tar", ".npy")]
    assert left == []


def test_damage_is_noticed(generators: dict[str, str], tmp_path: Path) -> None:
    draw_samples(sampling(generators, "diffusion", tmp_path))
    path = tmp_path / "samples.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged or incomplete samples"):
        read_samples(tmp_path)


def test_a_damaged_part_is_drawn_again(generators: dict[str, str], tmp_path: Path) -> None:
    config = sampling(generators, "diffusion", tmp_path)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_samples(config, stop)
    part = next((tmp_path / "parts").glob("*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=r"is damaged .* and was removed; run again"):
        draw_samples(config)
    steps: list[int] = []
    draw_samples(config, lambda done, _: steps.append(done))
    assert steps == [12]


def test_the_set_says_what_made_it(undisturbed: dict[str, Path]) -> None:
    facts = json.loads((undisturbed["autoregressive"] / "samples.json").read_text())
    assert facts["num_samples"] == 12
    assert facts["generator_step"] == 2
    assert len(facts["generator"]) == len(facts["tokenizer"]) == 64
    assert facts["recipe"]["cfg_scale"] == 1.5
    assert "output" not in facts["recipe"]


def test_networks_that_do_not_belong_together_are_refused(
    generators: dict[str, str], tmp_path: Path
) -> None:
    from tests.support.precompute_parts import write_tokenizer

    write_tokenizer(tmp_path / "other", seed=1, levels=5)
    config = sampling(generators, "diffusion", tmp_path / "out", tokenizer=str(tmp_path / "other"))
    with pytest.raises(UserError, match="give the tokenizer its tokens were made with"):
        draw_samples(config)
    with pytest.raises(UserError, match="the generator knows classes 0 to 2"):
        draw_samples(sampling(generators, "diffusion", tmp_path / "out", classes=[3]))


def test_the_grid_is_filled_row_by_row() -> None:
    images = np.arange(5, dtype=np.uint8).repeat(2 * 3 * 3).reshape(5, 2, 3, 3)
    grid = image_grid(images)
    assert grid.shape == (4, 9, 3)
    assert grid[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 255]]


def test_guidance_settings_reach_the_networks(
    generators: dict[str, str], tmp_path: Path, undisturbed: dict[str, Path]
) -> None:
    def drawn(kind: str, **changes: object) -> Samples:
        draw_samples(sampling(generators, kind, tmp_path, **changes))
        return read_samples(tmp_path)

    base = {kind: read_samples(undisturbed[kind]).images for kind in KINDS}
    flows = [{"method": "heun"}, {"cfg_end": 0.1}, {"guided_channels": 3}, {"method": "dopri5"}]
    for flow in flows:
        changed = drawn("diffusion", flow={"num_steps": 4, **flow}).images
        assert not np.array_equal(changed, base["diffusion"]), flow
    for change in ({"greedy": True}, {"top_k": 2}, {"top_p": 0.1}, {"cfg_last": 3}):
        changed = drawn("autoregressive", **change).images
        assert not np.array_equal(changed, base["autoregressive"]), change


def test_sets_go_to_object_storage_too(generators: dict[str, str], tmp_path: Path) -> None:
    """Everything is written through the storage interface, also the streamed file."""
    config = sampling(generators, "diffusion", tmp_path / "deep" / "folder")
    draw_samples(config)
    names = open_storage(config.output).list()
    assert sorted(names) == ["job.json", "preview.png", "samples.json", "samples.npz"]
