"""The classifier that judges and teaches: task, features, teacher, tags in a run's metrics."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.errors import UserError
from ifsq_train.artifacts.classifiers import load_classifier
from ifsq_train.artifacts.teachers import open_classifier_teacher
from ifsq_train.config import TrainConfig
from ifsq_train.config.classifier import ClassifierTaskConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.data.batch import Batch
from ifsq_train.evaluation.classifier_features import Judged, compare
from ifsq_train.models.classifier import Classifier, ClassifierTeacher
from ifsq_train.randomness import BatchRandom
from ifsq_train.tasks.base import StepInfo
from ifsq_train.tasks.classifier import ClassifierTask


class _Fp32:
    def autocast(self) -> Any:
        return nullcontext()


def small() -> Classifier:
    torch.manual_seed(0)
    return Classifier(4, (8, 16), blocks=1, norm_groups=4)


def test_features_and_maps_have_their_shapes() -> None:
    network, images = small().eval(), torch.randn(3, 3, 8, 8)
    assert network(images).shape == (3, 4)
    assert network.features(images).shape == (3, 16)
    assert network.maps(images).shape == (3, 16, 4, 4)
    teacher = ClassifierTeacher(network, (2, 2))
    assert teacher(images).shape == (3, 4, 16)
    same = ClassifierTeacher(network, (4, 4))(images)
    torch.testing.assert_close(same, network.maps(images).flatten(2).transpose(1, 2))


def test_the_fingerprint_is_that_of_shape_and_weights() -> None:
    network = small()
    first = network.fingerprint()
    assert small().fingerprint() == first
    assert Classifier(5, (8, 16), blocks=1, norm_groups=4).fingerprint() != first
    for name, value in network.state_dict().items():
        before = value.clone()
        value.flatten()[0] += 1
        assert network.fingerprint() != first, name
        value.copy_(before)


def loss_of(labels: list[int]) -> float:
    config = ClassifierTaskConfig.model_validate(
        {"kind": "classifier", "model": {"num_classes": 4, "channels": [8, 16], "norm_groups": 4}}
    )
    network, positions = small(), np.arange(len(labels))
    torch.manual_seed(1)
    images = torch.randn(4, 3, 8, 8)[: len(labels)]
    batch = Batch(images, torch.tensor(labels), positions)
    info = StepInfo(0, BatchRandom(0, 0, positions, 0, 0), 1.0, 1, _Fp32())
    task = ClassifierTask(config, network)
    return float(task.loss("classifier", task.modules(), batch, info).loss.detach())


def test_images_without_a_usable_label_count_for_nothing() -> None:
    assert loss_of([2, 1, -1, 9]) == pytest.approx(loss_of([2, 1]) / 2.0, rel=1e-5)
    assert loss_of([-1, -1]) == 0.0


def test_equal_sets_have_no_distance_and_accuracy_counts_labels() -> None:
    features = torch.randn(50, 6)
    one = Judged(features, torch.zeros(50, dtype=torch.int64))
    found = compare(one, one, np.array([0] * 40 + [1] * 10))
    assert found["classifier_frechet_distance"] == pytest.approx(0.0, abs=1e-9)
    assert found["classifier_accuracy"] == pytest.approx(0.8)
    far = compare(one, Judged(features + 3.0, one.classes), None)
    assert far["classifier_frechet_distance"] == pytest.approx(9.0 * 6, rel=1e-6)
    assert "classifier_accuracy" not in far


def test_a_run_can_be_opened_and_teaches_and_its_tags_are_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    from ifsq_train.metrics import training
    from launchers.first_steps.digits import write_digits
    from launchers.local import train_locally
    from launchers.stages import pack_images

    write_digits(tmp_path / "digits")
    pack_images(tmp_path / "digits", str(tmp_path / "data"), shard_bytes=1 << 20, seed=0)
    monkeypatch.setenv("IFSQ_METRICS_PORT", "0")
    seen: dict[str, str] = {}
    tag = training.names.TAG
    original = training.open_metrics

    def watched(*arguments: Any, **options: Any) -> Any:
        metrics = original(*arguments, **options)
        plain = metrics.set

        def keep(spec: Any, value: float, **labels: str) -> None:
            if spec is tag:
                seen[labels["key"]] = labels["text"]
            plain(spec, value, **labels)

        metrics.set = keep
        return metrics

    monkeypatch.setattr(training, "open_metrics", watched)
    config = load_recipe(
        "studies/parts/_classifier",
        [f"output={tmp_path / 'run'}", "name=judge", f"data.url={tmp_path / 'data'}", "steps=2",
         "tags={study: smoke, variant: 'bound ifsq, depth 1'}"],
    )  # fmt: skip
    assert isinstance(config, TrainConfig)
    train_locally(config)
    assert seen == {"study": "smoke", "variant": "bound ifsq, depth 1"}
    trained = load_classifier(tmp_path / "run")
    assert trained.step == 2
    teacher = open_classifier_teacher(str(tmp_path / "run"), 32, (4, 4))
    assert teacher(torch.zeros(1, 3, 8, 8)).shape == (1, 16, 32)
    with pytest.raises(UserError, match="give that number"):
        open_classifier_teacher(str(tmp_path / "run"), 16, (4, 4))
