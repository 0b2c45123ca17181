"""The evaluation command: every image once, whatever the batches, and all that decides a number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_pipelines.errors import UserError
from ifsq_train.config import EvaluateConfig
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.evaluation.evaluate import Tools, evaluate
from ifsq_train.evaluation.image_sets import batch_ranges
from ifsq_train.evaluation.representation import cknna
from ifsq_train.evaluation.result import network_digest, read_result
from ifsq_train.models.inception import FidInception
from ifsq_train.models.perceptual import Lpips
from ifsq_train.models.repa import SIZES, DinoTeacher
from tests.support.small_run import VIEW, train_tokenizer, write_images

pytestmark = pytest.mark.heavy

COUNT = 11


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data and a tokenizer."""
    folder = tmp_path_factory.mktemp("evaluate")
    data = write_images(folder, COUNT)
    quantizer = {"kind": "ifsq", "levels": [5, 5, 5, 5]}
    return {"data": data, "tokenizer": train_tokenizer(folder, data, quantizer)}


def config(parts: dict[str, str], output: Path, **more: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate(
        {"kind": "evaluate", "output": str(output), "view": VIEW, **parts, **more}
    )


def test_batches_change_no_number(parts: dict[str, str], tmp_path: Path) -> None:
    results = [
        evaluate(config(parts, tmp_path / f"{size}.json", batch_size=size))["metrics"]
        for size in (1, 4, 64)
    ]
    for result in results[1:]:
        assert result["num_images"] == COUNT
        assert result["num_positions"] == COUNT * 64
        assert result["digit_histograms"] == results[0]["digit_histograms"]
        for name in ("psnr_db", "psnr_db_8bit", "ssim", "ssim_gaussian", "l1"):
            assert result[name] == pytest.approx(results[0][name], rel=1e-5)


def test_the_file_holds_what_decides_the_numbers(parts: dict[str, str], tmp_path: Path) -> None:
    shown = evaluate(config(parts, tmp_path / "r.json"))
    stored = read_result(tmp_path / "r.json")
    assert stored.metrics == shown["metrics"]
    assert stored.kind == "reconstruction"
    assert stored.num_samples == stored.reference.num_samples == COUNT
    assert len(stored.reference.digest) == 64
    assert stored.preprocessing["view"]["image_size"] == 16
    assert stored.preprocessing["decoder"] == "cpu"
    assert len(stored.subject["tokenizer"]) == 64
    assert "torch" in stored.versions


def test_lpips_raw_and_in_8_bit(parts: dict[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Lpips("vgg16")
    names = {"backbone.": "", "heads.": "lin"}
    tensors = {}
    for key, value in network.state_dict().items():
        for prefix, replacement in names.items():
            if key.startswith(prefix):
                tensors[replacement + key.removeprefix(prefix)] = value.abs()
    save_file(tensors, tmp_path / "lpips.safetensors")
    options = {"lpips": [str(tmp_path / "lpips.safetensors")], "lpips_backbone": "vgg16"}
    result = evaluate(config(parts, tmp_path / "r.json", **options))
    assert result["metrics"]["lpips"] > 0
    assert result["metrics"]["lpips_8bit"] == pytest.approx(result["metrics"]["lpips"], rel=0.1)
    assert result["networks"]["lpips"]["name"] == "lpips-vgg16"


def test_only_what_is_asked_for_is_reported(parts: dict[str, str], tmp_path: Path) -> None:
    everything = evaluate(config(parts, tmp_path / "all.json"))["metrics"]
    some = evaluate(config(parts, tmp_path / "some.json", metrics=["psnr", "code_use"]))["metrics"]
    assert {"psnr_db", "psnr_db_8bit", "used_codes", "digit_histograms"} <= set(some)
    assert not {name for name in some if name.startswith(("ssim", "l1", "cknna"))}
    assert {name: everything[name] for name in some} == some


def test_cknna_with_a_teacher(parts: dict[str, str], tmp_path: Path) -> None:
    """In batches of any size, against the same features compared by hand."""
    torch.manual_seed(0)
    teacher = DinoTeacher(**SIZES["S"], grid=(37, 37))
    torch.save(teacher.state_dict(), tmp_path / "dino.pth")
    options = {"teacher": str(tmp_path / "dino.pth"), "teacher_size": "S", "metrics": ["cknna"],
               "cknna_neighbors": 3, "cknna_images": 9}  # fmt: skip
    results = [
        evaluate(config(parts, tmp_path / f"{size}.json", batch_size=size, **options))
        for size in (2, 64)
    ]
    tools = Tools.open(config(parts, tmp_path / "r.json", **options), InProcessContext())
    assert tools.images is not None
    assert tools.tokenizer is not None
    assert tools.teacher is not None
    images = torch.cat(list(tools.images.batches(InProcessContext())))[:9]
    with torch.no_grad():
        mine = tools.tokenizer.network.encoder(images).flatten(2).mean(2)
        expected = cknna(mine, tools.teacher(images).mean(1), neighbors=3)
    for result in results:
        assert result["metrics"]["cknna"] == pytest.approx(expected, rel=1e-4)
        assert result["metrics"]["num_cknna_images"] == 9
        assert result["networks"]["cknna"]["name"] == "dinov2-S"
        assert "psnr_db" not in result["metrics"]
    with pytest.raises(UserError, match="cknna: neighbors=10 with 5 rows"):
        evaluate(config(parts, tmp_path / "r.json", **options | {
            "cknna_images": 5, "cknna_neighbors": 10}))  # fmt: skip


@pytest.mark.slow
def test_everything_of_inception(parts: dict[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FidInception().eval()
    weights = network.state_dict() | {"fc.weight": torch.randn(1008, 2048) * 0.01}
    torch.save(weights, tmp_path / "inception.pth")
    random = np.random.default_rng(1)
    np.savez(tmp_path / "s.npz", arr_0=random.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))
    options = {"inception": str(tmp_path / "inception.pth"), "samples": str(tmp_path / "s.npz")}
    result = evaluate(config(parts, tmp_path / "r.json", **options))
    metrics = result["metrics"]
    for name in ("rfid", "rfid_8bit", "fid", "sfid"):
        assert metrics[name] > 0
    assert metrics["rfid_8bit"] == pytest.approx(metrics["rfid"], rel=0.5)
    assert metrics["inception_score"] >= 1
    assert 0 <= metrics["precision"] <= 1
    assert metrics["num_generated"] == 6
    network.classifier = weights["fc.weight"]
    digest = network_digest(network, {"name": "inception-fid"})
    assert result["networks"]["fid"] == {"name": "inception-fid", "digest": digest}
    assert result["kind"] == "reconstruction+generation"


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_the_images_out_without_overlap(world_size: int) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        context = InProcessContext(rank=rank, world_size=world_size)
        for first, last in batch_ranges(COUNT, 2, context):
            seen += range(first, last)
    assert seen == list(range(COUNT))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": None}, "give a tokenizer, samples or both"),
        ({"view": None}, "data and view go together"),
        ({"data": None, "view": None}, "a tokenizer needs data"),
        ({"reference": "r.npz"}, "needs inception and samples"),
        ({"tokenizer": None, "samples": "s"}, "need a tokenizer, inception or classifier"),
        ({"metrics": ["psnr", "lpips"]}, "metrics: lpips needs lpips"),
        ({"metrics": ["fid"]}, "metrics: fid needs samples, inception"),
        ({"metrics": ["cknna"]}, "metrics: cknna needs teacher"),
        ({"metrics": ["fvd"]}, "should be 'psnr', 'ssim'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config({"data": "d", "tokenizer": "t"}, Path("o.json"), **change)


def test_a_missing_weight_file_is_named(parts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"inception: no file 'none\.pth'"):
        evaluate(config(parts, tmp_path / "r.json", inception="none.pth"))
