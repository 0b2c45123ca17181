"""What a newcomer does in the first hour: relative paths, own folders, changed recipes.

Everything goes through the real command, in a folder of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launchers.cli import program
from launchers.on_ray.cluster import ray_session
from tests.support.image_folders import write_photos

LOCAL = ("--launcher", "local")
RECIPES = {
    "tokenizer": """
kind: train
name: tokenizer
output: runs/tokenizer
steps: 4
data:
  kind: images
  url: datasets/mine
  view: {kind: adm_center, image_size: 16}
  global_batch_size: 4
task:
  kind: tokenizer
  model:
    quantizer: {kind: ifsq, levels: [5, 5, 5]}
    channel_multipliers: [1, 2]
    base_channels: 8
    num_res_blocks: 1
    norm_groups: 4
  adversarial: null
optim:
  autoencoder: {lr: 1.0e-3}
strategy: {kind: torch}
log_every_steps: 1
""",
    "tokens": """
kind: precompute
source: datasets/mine
tokenizer: runs/tokenizer
output: runs/tokens
view: {kind: adm_center, image_size: 16}
samples_per_shard: 8
batch_size: 4
""",
    "generator": """
kind: train
name: generator
output: runs/generator
steps: 2
data: {kind: tokens, url: runs/tokens, tokenizer: runs/tokenizer, global_batch_size: 4}
task:
  kind: autoregressive
  model: {num_layers: 1, num_heads: 2, dim: 16, num_classes: 3}
optim:
  generator: {lr: 1.0e-3}
strategy: {kind: torch}
""",
    "samples": """
kind: sample
generator: runs/generator
tokenizer: runs/tokenizer
output: runs/samples
samples_per_class: 2
batch_size: 3
format: png
""",
    "evaluation": """
kind: evaluate
tokenizer: runs/tokenizer
data: datasets/mine
view: {kind: adm_center, image_size: 16}
samples: runs/samples
output: runs/evaluation.json
""",
}


@dataclass
class Newcomer:
    """Somebody who types `ifsq ...` in a folder."""

    folder: Path

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command."""
        out, err, code, argv = io.StringIO(), io.StringIO(), 0, sys.argv
        sys.argv = ["ifsq", *arguments]
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                program.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        sys.argv = argv
        return code, out.getvalue(), err.getvalue()

    def does(self, *arguments: str) -> str:
        """Standard output of a command that must succeed."""
        code, out, err = self(*arguments)
        assert code == 0, f"{' '.join(arguments)}:\n{out}{err}"
        return out

    def is_refused(self, *arguments: str) -> str:
        """Error lines of a command that must be refused with exit code 2 and no traceback."""
        code, out, err = self(*arguments)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2, out + err
        assert lines, err
        assert "Traceback" not in err
        return "\n".join(lines)

    def files(self) -> dict[str, bytes]:
        """All files below the folder by name."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}


def _new(folder: Path) -> Newcomer:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    return Newcomer(folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    """Every stage, with relative paths, from an empty folder, without Ray."""
    newcomer = _new(tmp_path_factory.mktemp("first-hour"))
    write_photos(newcomer.folder / "photos", 24)
    newcomer.does("data", "pack", "photos", "datasets/mine", "--shard-megabytes", "0.02")
    newcomer.does("train", "tokenizer.yaml", *LOCAL)
    newcomer.does("precompute", "tokens.yaml", "--actors", "0")
    newcomer.does("train", "generator.yaml", *LOCAL)
    newcomer.does("sample", "samples.yaml")
    newcomer.does("evaluate", "evaluation.yaml")
    return newcomer


# ---------------------------------------------------------------- relative paths


def test_relative_paths_are_below_the_folder_one_stands_in(done: Newcomer) -> None:
    there = {name.partition("/")[0] for name in done.files()}
    assert there == {"photos", "datasets", "runs", *(f"{name}.yaml" for name in RECIPES)}
    assert json.loads((done.folder / "runs/tokenizer/result.json").read_bytes())["steps"] == 4
    assert (done.folder / "runs/evaluation.json").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("data", "info", "datasets/mine"),
        ("data", "verify", "runs/tokens"),
        ("data", "preview", "tokenizer.yaml", "--output", "batch.png"),
        ("data", "preview", "datasets/mine", "--output", "images.png"),
        ("plan", "generator.yaml", "--gpus-per-node", "2"),
        ("precompute", "tokens.yaml", "--verify", "2"),
        ("checkpoint", "info", "runs/tokenizer"),
        ("checkpoint", "export", "runs/tokenizer", "weights"),
    ],
)
def test_every_command_takes_relative_paths(done: Newcomer, command: tuple[str, ...]) -> None:
    done.does(*command)


def test_lists_of_datasets_and_rays_workers_take_relative_paths(done: Newcomer) -> None:
    """Workers of Ray run in folders of their own."""
    mix = "data.mix=[{url: datasets/mine, weight: 2}, {url: ./datasets/mine, weight: 1}]"
    with ray_session(None, min_cpus=2):
        done.does("train", "tokenizer.yaml", "data.url=null", mix, "output=mixed", "steps=1")
        done.does("precompute", "tokens.yaml", "output=ray-tokens")
        done.does("sample", "samples.yaml", "output=drawn", "--actors", "1", "format=npz")
        done.does("data", "pack", "photos", "again", "--workers", "1")
        done.does("submit", "evaluation.yaml", "output=submitted.json", "--to", "local")
    for made in ("mixed/result.json", "drawn/samples.npz", "again/manifest.json", "submitted.json"):
        assert (done.folder / made).is_file()
    tokens = [done.folder / name / "tokens.json" for name in ("ray-tokens", "runs/tokens")]
    assert tokens[0].read_bytes() == tokens[1].read_bytes()


# ---------------------------------------------------------------- nothing is lost


WRITERS = {
    "train": ("train", "tokenizer.yaml", "output=theirs", "--launcher", "local"),
    "pack": ("data", "pack", "photos", "theirs"),
    "index": ("data", "index", "datasets/mine", "theirs"),
    "precompute": ("precompute", "tokens.yaml", "output=theirs", "--actors", "0"),
    "sample": ("sample", "samples.yaml", "output=theirs"),
    "export": ("checkpoint", "export", "runs/tokenizer", "theirs"),
    "codes": ("data", "export-codes", "runs/tokens", "theirs", "labels"),
    "demo": ("demo", "--output", "theirs"),
}


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("writer", WRITERS)
def test_no_command_touches_a_folder_it_did_not_make(
    done: Newcomer, writer: str, overwrite: bool
) -> None:
    theirs = done.folder / "theirs"
    for name in ("images/mine.png", "shards/a.tar", "shard-000000.tar", "samples.npz", "w.npy"):
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_bytes(b"theirs")
    before = done.files()
    option = ["--overwrite"] if overwrite and writer != "demo" else []
    said = done.is_refused(*WRITERS[writer], *option)
    assert "theirs is not empty and was not made by `ifsq" in said
    assert "images/mine.png, samples.npz, shard-000000.tar and 2 more" in said
    assert done.files() == before


def test_no_command_writes_into_the_folder_of_another(done: Newcomer) -> None:
    before = done.files()
    for command in (
        ("sample", "samples.yaml", "output=datasets/mine"),
        ("data", "pack", "photos", "runs/tokens"),
        ("data", "pack", "photos", "photos"),
        ("precompute", "tokens.yaml", "output=runs/samples"),
        ("train", "tokenizer.yaml", "output=runs/tokens", "--launcher", "local"),
    ):
        done.is_refused(*command)
        done.is_refused(*command, "--overwrite")
    assert done.files() == before


def test_files_of_others_are_not_replaced(done: Newcomer) -> None:
    (done.folder / "note.json").write_text('{"mine": 1}')
    said = done.is_refused("evaluate", "evaluation.yaml", "output=note.json", "--overwrite")
    assert "note.json was not made by `ifsq evaluate`" in said
    assert "note.json was not made by" in done.is_refused(
        "data", "preview", "datasets/mine", "--output", "note.json"
    )
    assert (done.folder / "note.json").read_text() == '{"mine": 1}'


def test_finished_results_of_other_settings_are_replaced_only_if_told(done: Newcomer) -> None:
    done.does("data", "pack", "photos", "packed", "--shard-megabytes", "0.02")
    done.does("data", "pack", "photos", "packed", "--shard-megabytes", "0.02")
    said = done.is_refused("data", "pack", "photos", "packed", "--seed", "1")
    assert "already holds another dataset" in said
    assert "seed: 0 -> 1" in said
    (done.folder / "packed" / "keep.txt").write_text("mine")
    _, _, err = done("data", "pack", "photos", "packed", "--seed", "1", "--overwrite")
    assert "--overwrite: removing index/shard-000000.arrow" in err
    assert (done.folder / "packed" / "keep.txt").read_text() == "mine"

    sample = ("sample", "samples.yaml", "output=few", "samples_per_class=1")
    done.does(*sample)
    (done.folder / "few" / "images" / "mine.png").write_bytes(b"mine")
    first = done.files()["few/images/000000.png"]
    assert "recipe.seed: 0 -> 1" in done.is_refused(*sample, "seed=1")
    assert done.files()["few/images/000000.png"] == first
    done.does(*sample, "seed=1", "--overwrite")
    assert done.files()["few/images/000000.png"] != first
    assert done.files()["few/images/mine.png"] == b"mine"

    evaluate = ("evaluate", "evaluation.yaml", "samples=null", "output=measured.json")
    done.does(*evaluate)
    done.does(*evaluate)
    assert "batch_size: 64 -> 5" in done.is_refused(*evaluate, "batch_size=5")
    done.does(*evaluate, "batch_size=5", "--overwrite")

    done.does("checkpoint", "export", "runs/tokenizer", "exported")
    assert "step: 4 -> 2" in done.is_refused("checkpoint", "export", "runs/generator", "exported")


def test_folders_of_earlier_releases_are_recognised(done: Newcomer) -> None:
    for name in ("datasets/mine", "runs/tokenizer"):
        (done.folder / name / "ifsq-output.json").unlink()
    done.does("data", "pack", "photos", "datasets/mine", "--shard-megabytes", "0.02")
    assert "4 steps" in done.does("train", "tokenizer.yaml", "--launcher", "local")


# ---------------------------------------------------------------- changed experiments


def test_a_changed_experiment_is_not_resumed_silently(done: Newcomer) -> None:
    train = ("train", "tokenizer.yaml", "output=runs/changed", *LOCAL)
    done.does(*train)
    changes = ("task.model.quantizer.kind=fsq", "task.pixel_loss=l2", "seed=3")
    for steps in ("steps=4", "steps=6"):
        said = done.is_refused(*train, steps, *changes)
        assert "was trained with other settings up to step 4" in said
        assert "task.model.quantizer.kind: ifsq -> fsq" in said
        assert "task.pixel_loss: l1 -> l2" in said
        assert "seed: 0 -> 3" in said
        assert "--allow-change task.pixel_loss" in said
        assert "steps: 4" not in said
    result = done.folder / "runs/changed/result.json"
    assert json.loads(result.read_bytes())["changes"] == []
    # Keys that extend or observe may change.
    done.does(*train, "steps=5", "log_every_steps=2", "checkpoint.every_steps=3")
    found = json.loads(result.read_bytes())
    assert (found["steps"], found["resumed_from"]) == (5, 4)


def test_an_allowed_change_is_recorded_with_its_step(done: Newcomer) -> None:
    train = ("train", "tokenizer.yaml", "output=runs/allowed", *LOCAL)
    done.does(*train)
    allow = ("--allow-change", "task.pixel_loss", "--allow-change", "seed")
    said = done.is_refused(
        *train, "steps=5", "task.pixel_loss=l2", "optim.autoencoder.lr=1", *allow
    )
    assert "optim.autoencoder.lr: 0.001 -> 1.0" in said
    assert "pixel_loss" not in said
    done.does(*train, "steps=6", "task.pixel_loss=l2", "seed=7", *allow)
    entry = {"key": "task.pixel_loss", "was": "l1", "is": "l2", "step": 4}
    assert entry in json.loads((done.folder / "runs/allowed/result.json").read_bytes())["changes"]
    header = done.does("checkpoint", "info", "runs/allowed")
    assert entry in json.loads(header)["changes"]
    # With the new settings it is the same experiment again.
    done.does(*train, "steps=7", "task.pixel_loss=l2", "seed=7")


def test_train_starts_anew_only_if_told(done: Newcomer) -> None:
    train = ("train", "tokenizer.yaml", "output=runs/anew", "steps=2", *LOCAL)
    done.does(*train)
    (done.folder / "runs/anew/notes.txt").write_text("mine")
    done.is_refused(*train, "task.pixel_loss=l2")
    done.does(*train, "task.pixel_loss=l2", "--overwrite")
    result = json.loads((done.folder / "runs/anew/result.json").read_bytes())
    assert (result["resumed_from"], result["changes"]) == (None, [])
    assert (done.folder / "runs/anew/notes.txt").read_text() == "mine"


# ---------------------------------------------------------------- averaged weights


def test_averages_warm_up_and_live_weights_can_be_asked_for(done: Newcomer) -> None:
    """Four steps at the default decay of 0.9999: without warm-up next to nothing is averaged in."""
    cold = ("train", "tokenizer.yaml", "output=runs/cold", "ema_warmup=false", *LOCAL)
    done.does(*cold)
    measure = ("evaluate", "evaluation.yaml", "samples=null", "tokenizer=runs/cold")
    _, _, said = done(*measure, "output=averaged.json")
    assert "100.0 % of the averaged weights are those the run began with" in said
    _, _, said = done(*measure, "output=live.json", "weights=live")
    assert "averaged weights" not in said
    results = [json.loads((done.folder / f"{n}.json").read_bytes()) for n in ("averaged", "live")]
    assert [result["subject"]["weights"] for result in results] == ["averaged", "live"]
    assert results[0]["metrics"]["psnr_db"] != results[1]["metrics"]["psnr_db"]
    _, _, said = done(*measure, "output=warm.json", "tokenizer=runs/tokenizer")
    assert "averaged weights" not in said


def test_tokens_of_live_weights_go_with_the_run_they_came_from(done: Newcomer) -> None:
    live = ("output=runs/live-tokens", "weights=live")
    done.does("precompute", "tokens.yaml", *live, "--actors", "0")
    facts = json.loads((done.folder / "runs/live-tokens/tokens.json").read_bytes())
    averaged = json.loads((done.folder / "runs/tokens/tokens.json").read_bytes())
    assert facts["tokenizer_weights"] == "live"
    assert averaged["tokenizer_weights"] == "averaged"
    assert facts["spec"]["tokenizer_fingerprint"] != averaged["spec"]["tokenizer_fingerprint"]
    train = ("train", "generator.yaml", "data.url=runs/live-tokens", "output=runs/live", *LOCAL)
    done.does(*train)
    done.does("sample", "samples.yaml", "generator=runs/live", "output=live-samples")
    made = json.loads((done.folder / "live-samples/samples.json").read_bytes())
    assert made["tokenizer"] == facts["spec"]["tokenizer_fingerprint"]
    assert made["recipe"]["weights"] == "averaged"


# ---------------------------------------------------------------- recipes that cannot work

QUANTIZER = "task.model.quantizer"
FAULTS = {
    "alpha-inf": ([f"{QUANTIZER}.alpha=.inf"], "alpha: found inf; use a finite number"),
    "alpha-nan": ([f"{QUANTIZER}.alpha=.nan"], "alpha: found nan; use a finite number"),
    "alpha-flat": ([f"{QUANTIZER}.alpha=1e-8"], "every input is rounded to the middle level"),
    "alpha-steep": ([f"{QUANTIZER}.alpha=1e6"], "one of the two end levels"),
    "two-levels": (
        [f"{QUANTIZER}.levels=[2,2,2]", f"{QUANTIZER}.bound=shifted"],
        "gives one of the two codes to all inputs; use 3 levels or more",
    ),
    "overflow": (
        [f"{QUANTIZER}.levels=[65537,65537,65537,65537]"],
        "4 channels make 1.84e+19 codes, more than the 9.22e+18 a token id can name",
    ),
    "strides": (
        ["data.view.image_size=30", "task.model.channel_multipliers=[1,2,2]"],
        "found 30, not a multiple of the 4 pixels per latent cell",
    ),
    "discriminator": (
        ["task.adversarial={}", "optim.discriminator={lr: 1}"],
        "task.adversarial.num_layers: found 4, which leave nothing of images of 16 pixels",
    ),
    "channels": (["task.model.in_channels=1"], "images have task.model.image_channels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_recipes_that_cannot_work_are_refused_without_data(done: Newcomer, fault: str) -> None:
    changes, said = FAULTS[fault]
    assert said in done.is_refused("config", "validate", "tokenizer.yaml", *changes)
    assert said in done.is_refused("train", "tokenizer.yaml", "data.url=nowhere", *changes, *LOCAL)


def test_all_faults_are_reported_at_once(done: Newcomer) -> None:
    changes = [f"{QUANTIZER}.alpha=.inf", "data.view.image_size=31", "steps=0", "nonsense=1"]
    said = done.is_refused("config", "validate", "tokenizer.yaml", *changes).splitlines()
    keys = ("steps", "nonsense", f"{QUANTIZER}.alpha", "data.view.image_size")
    assert [any(f": {key}:" in line for line in said) for key in keys] == [True] * 4


def test_alignment_beyond_the_network(done: Newcomer) -> None:
    repa = "task.repa={weight: 1, depth: 2}"
    said = done.is_refused("config", "validate", "generator.yaml", repa)
    assert "task.repa.depth: found 2, beyond the model's 1 blocks" in said
    shape = [f"task.model.{key}=null" for key in ("num_layers", "num_heads", "dim")]
    repa = "task.repa={weight: 1, depth: 13}"
    said = done.is_refused(
        "config", "validate", "generator.yaml", "task.model.size=B", *shape, repa
    )
    assert "beyond the model's 12 blocks" in said


def test_labels_are_compared_with_the_generator(done: Newcomer) -> None:
    train = ("train", "generator.yaml", *LOCAL)
    said = done.is_refused(*train, "output=runs/few", "task.model.num_classes=2")
    assert "num_classes: found 2, but the data has labels up to 2; use 3" in said
    assert not (done.folder / "runs/few/checkpoints").exists()
    code, _, err = done(*train, "output=runs/many", "task.model.num_classes=5", "steps=1")
    assert code == 0, err
    assert "num_classes=5, but the data has only 3 classes" in err
    done.does("sample", "samples.yaml", "generator=runs/many", "output=many", "format=npz")
    facts = json.loads((done.folder / "many/samples.json").read_bytes())
    assert facts["num_samples"] == 2 * 3


def test_unlabelled_data_and_a_class_conditional_generator(done: Newcomer) -> None:
    flat = done.folder / "flat"
    flat.mkdir()
    for path in sorted((done.folder / "photos/class0").iterdir()):
        (flat / path.name).write_bytes(path.read_bytes())
    done.does("data", "pack", "flat", "datasets/flat")
    flat_tokens = ("source=datasets/flat", "output=runs/flat", "--actors", "0")
    done.does("precompute", "tokens.yaml", *flat_tokens)
    said = done.is_refused(
        "train", "generator.yaml", "data.url=runs/flat", "output=runs/unlabelled", *LOCAL
    )
    assert "there are samples without a label (-1)" in said
