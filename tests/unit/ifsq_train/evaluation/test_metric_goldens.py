"""The measures give what the released evaluation gives."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ifsq_train.evaluation.codes import CodeCounter
from ifsq_train.evaluation.generation import FeatureMoments, frechet_distance
from ifsq_train.evaluation.reconstruction import ReconstructionMeter, psnr, ssim
from ifsq_train.evaluation.representation import cknna, hsic
from tests.support.goldens import Golden


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "metrics")


def test_psnr(golden: Golden) -> None:
    values = psnr(golden["img.ref"], golden["img.rec"])
    assert torch.allclose(values, golden["psnr.per_image"].double(), rtol=1e-6, atol=0)
    assert float(values.mean()) == pytest.approx(float(golden["psnr.mean"]), rel=1e-6)


def test_ssim(golden: Golden) -> None:
    values = ssim(golden["img.ref"], golden["img.rec"])
    # scikit-image was given fp32 images; ours computes in fp64.
    assert torch.allclose(values, golden["ssim.per_image"], rtol=0, atol=1e-6)
    assert float(values.mean()) == pytest.approx(float(golden["ssim.batch"]), abs=1e-6)


def test_meter_of_images_in_minus_one_to_one(golden: Golden) -> None:
    meter = ReconstructionMeter()
    meter.add(golden["img.ref"] * 2 - 1, golden["img.rec"] * 2 - 1)
    results = meter.results()
    assert results["psnr_db"] == pytest.approx(float(golden["psnr.mean"]), rel=1e-6)
    # Our unit is [-1, 1], twice the recorded one.
    assert results["l1"] / 2 == pytest.approx(float(golden["l1.mean"]), rel=1e-6)
    assert results["ssim"] == pytest.approx(float(golden["ssim.batch"]), abs=1e-6)


def features(golden: Golden, name: str, count: int | None = None) -> FeatureMoments:
    rows = golden[name][:count]
    moments = FeatureMoments(rows.shape[1])
    moments.add(rows)
    return moments


def test_moments(golden: Golden) -> None:
    moments = features(golden, "fid.f1")
    assert torch.allclose(moments.mean, golden["fid.mu1"], rtol=1e-12, atol=1e-14)
    assert torch.allclose(moments.covariance(), golden["fid.sigma1"], rtol=1e-12, atol=1e-14)


def test_frechet_distance(golden: Golden) -> None:
    first, second = features(golden, "fid.f1"), features(golden, "fid.f2")
    assert frechet_distance(first, second) == pytest.approx(float(golden["fid.value"]), rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_of_fewer_samples_than_features(golden: Golden) -> None:
    few = features(golden, "fid.f1", 12)
    expected = float(golden["fid.rank_deficient"])
    assert frechet_distance(few, features(golden, "fid.f2")) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("neighbors", [3, 10, 63])
def test_cknna(golden: Golden, neighbors: int) -> None:
    value = cknna(golden["cknna.a"], golden["cknna.b"], neighbors=neighbors)
    assert value == pytest.approx(float(golden[f"cknna.k{neighbors}_f64"]), rel=1e-9)
    assert value == pytest.approx(float(golden[f"cknna.k{neighbors}"]), rel=1e-4)


def test_cknna_variants(golden: Golden) -> None:
    a, b = golden["cknna.a"], golden["cknna.b"]
    biased = cknna(a, b, unbiased=False)
    assert biased == pytest.approx(float(golden["cknna.biased"]), rel=1e-5)
    normed = cknna(F.normalize(a, dim=-1), F.normalize(b, dim=-1))
    assert normed == pytest.approx(float(golden["cknna.normed"]), rel=1e-5)
    assert cknna(a, a) == pytest.approx(float(golden["cknna.self"]), rel=1e-6)


@pytest.mark.parametrize("kind", ["unbiased", "biased"])
def test_hsic(golden: Golden, kind: str) -> None:
    a, b = golden["cknna.a"].double(), golden["cknna.b"].double()
    value = hsic(a @ a.t(), b @ b.t(), unbiased=kind == "unbiased")
    assert float(value) == pytest.approx(float(golden[f"hsic.{kind}"]), rel=1e-5)


def test_code_usage(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "losses")
    counter = CodeCounter([16])
    counter.add(golden["perp.idx"].unsqueeze(-1))
    assert counter.used_codes() == [int(golden["perp.used"])]
    # The released code adds 1e-10 inside the logarithm, in fp32.
    assert counter.perplexities()[0] == pytest.approx(float(golden["perp.perplexity"]), rel=1e-6)
