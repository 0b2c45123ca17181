"""An evaluation counts every image once for any number of ranks."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import run_ranks
from tests.support.small_run import VIEW, train_tokenizer, write_images

COUNT = 7


def test_one_and_three_ranks_agree(tmp_path: Path) -> None:
    """Seven images do not divide by three: nothing is padded or dropped."""
    data = write_images(tmp_path, COUNT)
    quantizer = {"kind": "ifsq", "levels": [5, 5, 5, 5]}
    values: dict[str, Any] = {
        "kind": "evaluate",
        "tokenizer": train_tokenizer(tmp_path, data, quantizer),
        "data": data,
        "view": VIEW,
        "batch_size": 2,
    }
    results = [
        run_ranks(
            size, "evaluate_recipe", values=values | {"output": str(tmp_path / f"{size}.json")}
        )
        for size in (1, 3)
    ]
    (alone,), shared = results
    for one in shared:
        metrics = one["metrics"]
        assert metrics["num_images"] == COUNT
        assert metrics["num_positions"] == COUNT * 64
        assert metrics["digit_histograms"] == alone["metrics"]["digit_histograms"]
        for name in ("psnr_db", "psnr_db_8bit", "ssim", "ssim_gaussian", "l1"):
            assert metrics[name] == pytest.approx(alone["metrics"][name], rel=1e-5)
    assert (tmp_path / "3.json").is_file()
