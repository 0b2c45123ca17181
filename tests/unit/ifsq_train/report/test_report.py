from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ifsq_train.report.page import write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects text, attributes and images; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.images: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.links += [values[name] for name in ("src", "href", "srcset") if name in values]
        if tag == "img":
            self.images[values["alt"]] = values["src"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # <path .../> and the like close themselves

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def make_result() -> dict[str, Any]:
    return {
        "stages": {
            "pack": {"seconds": 0.41},
            "tokenizer": {
                "seconds": 61.25,
                "world_size": 2,
                "strategy": "deepspeed",
                "zero_stage": 1,
                "steps": 400,
                "final_loss": 0.0713,
                "psnr_db": 21.37,
                "code_entropy_bits": 7.912,
            },
            "precompute": {
                "seconds": 9.5,
                "rows": 1438,
                "expected_rows": 1438,
                "missing_rows": 0,
                "duplicate_rows": 0,
            },
            "generator": {"seconds": 120.0, "world_size": 2, "steps": 600, "final_loss": 3.25},
            "sample": {"seconds": 4.0, "num_samples": 200},
            "evaluate": {
                "seconds": 2.0,
                "class_accuracy": 0.874,
                "classifier_accuracy": 0.969,
                "num_samples": 200,
                "frechet_distance": 1.75,
            },
        },
        "peak_memory_bytes": 3 * 2**29,
        "wall_seconds": 197.2,
        "versions": {"torch": "2.13.0", "python": "3.11.2"},
    }


def make_inputs(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    return {
        "originals": images,
        "reconstructions": images // 2,
        "samples": rng.integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8),
        "class_names": ["zero", "one <&>", "two"],
        "curves": {
            "tokenizer": [(step, 1 / (1 + step)) for step in range(0, 400, 10)],
            "generator": [(0, 4.5), (10, float("nan")), (20, 3.25)],
        },
        "histograms": rng.random((4, 17)),
    }


def write_page(folder: Path, result: dict[str, Any] | None = None, **changes: Any) -> str:
    path = folder / "report.html"
    write_report(path, result or make_result(), **(make_inputs() | changes))
    return path.read_text()


def test_page_is_balanced_html(tmp_path: Path) -> None:
    page = Page(write_page(tmp_path))
    assert page.open == []


def test_page_makes_no_request(tmp_path: Path) -> None:
    text = write_page(tmp_path)
    links = Page(text).links
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text


SHOWN = """21.37 dB|7.912 bits|87.4 %|96.9 %|1,438 of 1,438|0 missing, 0 duplicate|3 min 17 s
1.50 GiB|2.13.0|1.75|deepspeed|61.2 s|0.0713"""


@pytest.mark.parametrize("number", SHOWN.replace("\n", "|").split("|"))
def test_page_shows_the_number(tmp_path: Path, number: str) -> None:
    assert number in " ".join(Page(write_page(tmp_path)).text)


def test_missing_class_accuracy_is_said_not_invented(tmp_path: Path) -> None:
    result = make_result()
    result["stages"]["evaluate"]["class_accuracy"] = None
    assert "<dd>not measured</dd>" in write_page(tmp_path, result)


def test_lost_rows_are_pointed_out(tmp_path: Path) -> None:
    result = make_result()
    result["stages"]["precompute"] |= {"rows": 1437, "missing_rows": 1}
    assert "Attention: 1 missing, 0 duplicate" in write_page(tmp_path, result)


def test_class_names_are_escaped(tmp_path: Path) -> None:
    text = write_page(tmp_path)
    assert "one &lt;&amp;&gt;" in text
    assert "one <&>" not in text


def test_small_images_are_enlarged_pixel_by_pixel(tmp_path: Path) -> None:
    inputs = make_inputs()
    source = Page(write_page(tmp_path)).images["original 0"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    factor = len(shown) // 16
    assert factor >= 4
    np.testing.assert_array_equal(shown[::factor, ::factor], inputs["originals"][0])
    np.testing.assert_array_equal(
        shown, shown[::factor, ::factor].repeat(factor, 0).repeat(factor, 1)
    )


def test_channels_may_have_fewer_levels(tmp_path: Path) -> None:
    histograms = np.array([[1.0, 1.0, np.nan], [2.0, 1.0, 1.0]])
    text = write_page(tmp_path, histograms=histograms)
    assert "1.00 of 1.00 bits used" in text
    assert "1.50 of 1.58 bits used" in text


def test_an_unfinished_pipeline_still_gives_a_page(tmp_path: Path) -> None:
    text = write_page(
        tmp_path,
        {"stages": {"pack": {"seconds": 1.0}}},
        curves={"tokenizer": [], "generator": [(5, 1.0)]},
        histograms=np.zeros((1, 3)),
    )
    assert Page(text).open == []


def test_wrong_image_type_is_named(tmp_path: Path) -> None:
    wrong = make_inputs()["samples"].astype(np.float32)
    with pytest.raises(ValueError, match="samples: found float32"):
        write_page(tmp_path, samples=wrong)


def test_old_page_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    assert write_page(tmp_path).startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
