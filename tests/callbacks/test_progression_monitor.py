"""The monitor on a real trainer against the definitions on the outputs of the same batches."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from callbacks import ProgressionMonitor, RunRecorder
from layersim.errors import UserError
from layersim.heads import SeparateHeads, SharedHead
from layersim.metrics import progression
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures, LayerOutput, Readout
from layersim.report.records import LayerRecord, read_records
from tests import tiny
from tests.callbacks.test_monitors import trainer


def record(path: Path) -> LayerRecord:
    return read_records(path / "layers.jsonl")[-1]


def outputs(module: LayerwiseModule) -> tuple[Tensor, Tensor, Tensor]:
    """Features, classes and the true class's log-odds of all validation samples, by position."""
    data = tiny.digits(eval_batch_size=360)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    order = batch["position"].argsort()
    with torch.no_grad():
        output = module.eval()(batch)
    return output.features.values[:, order], batch["label"][order], output.readout.target_log_odds[:, order]


def test_the_record_after_training_is_what_the_definitions_give(tmp_path: Path) -> None:
    module, data = tiny.module(optimizer=partial(torch.optim.AdamW, lr=0.01)), tiny.digits(eval_batch_size=55)
    run = trainer(tmp_path, [ProgressionMonitor(), RunRecorder()], max_epochs=2)
    run.fit(module, data)
    measured = record(tmp_path).progression
    features, classes, log_odds = outputs(module)
    assert measured["samples"] == 360

    x = features.double() - features.double().mean(1, keepdim=True)
    cosines = torch.nn.functional.cosine_similarity(x, x[-1:], dim=2)
    for name, values in {"cosine": cosines, "target_probability": log_odds.double().sigmoid()}.items():
        rises = values.diff(dim=0) > 0
        assert measured[name] == pytest.approx(values.mean(1).tolist(), abs=1e-6)
        assert measured[f"{name}_rises"] == pytest.approx(rises.all(0).double().mean().item(), abs=1.5 / 360)
        assert measured[f"{name}_rises_by_step"] == pytest.approx(rises.double().mean(1).tolist(), abs=1.5 / 360)
    steps = features.double().diff(dim=0)
    chord = (features[-1] - features[0]).double().norm(dim=1)
    assert measured["path_over_chord"] == pytest.approx((steps.norm(dim=2).sum(0) / chord).mean().item(), rel=1e-5)
    angles = torch.nn.functional.cosine_similarity(steps[:-1], steps[1:], dim=2).acos().rad2deg().mean(1)
    assert measured["angle"] == pytest.approx(angles.tolist(), rel=1e-5)
    ratios = (features[:-1].double().norm(dim=2) / steps.norm(dim=2)).mean(1)
    assert measured["skip_over_residual"] == pytest.approx(ratios.tolist(), rel=1e-4)

    expected = progression(features, classes)
    for name, value in expected["neural_collapse"].items():
        assert measured["neural_collapse"][name] == pytest.approx(value, rel=1e-3), name
    with torch.no_grad():
        read = module.head.final_norm(features)  # type: ignore[operator]
    means = torch.stack([read[:, classes == number].mean(1) for number in range(10)], dim=1).double()
    means = means - means.mean(1, keepdim=True)
    weight = module.head.classifier.weight.detach().double()  # type: ignore[union-attr, operator]
    apart = [(weight / weight.norm() - mean / mean.norm()).norm().item() for mean in means]
    assert measured["neural_collapse"]["self_duality"] == pytest.approx(apart, rel=1e-4)

    logged = {name: value.item() for name, value in run.callback_metrics.items() if "train" not in name}
    assert {name.removeprefix("val/"): value for name, value in logged.items()} == {
        "cosine_rises": pytest.approx(measured["cosine_rises"]),
        "target_probability_rises": pytest.approx(measured["target_probability_rises"]),
        "path_over_chord": pytest.approx(measured["path_over_chord"]),
        "cosine_cka_pearson": pytest.approx(measured["cosine_cka"]["pearson"]),
        "cosine_cka_spearman": pytest.approx(measured["cosine_cka"]["spearman"]),
        "nc1": pytest.approx(measured["neural_collapse"]["nc1"][-1]),
    }
    for name in ("progression", "class_paths"):
        assert (tmp_path / "figures" / f"val-{name}-epoch-0001.png").is_file()


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, str):
        assert found == expected
    elif isinstance(expected, list) and isinstance(expected[0], list):
        for pair in zip(found, expected, strict=True):
            same(*pair)
    else:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("max_samples", [100, 4096])
def test_two_processes_equal_one(tmp_path: Path, max_samples: int) -> None:
    """Of 360 samples in batches of 50 one process reads 200, the other 160."""
    for name, options in {"one": {}, "two": {"strategy": "ddp_fork", "devices": 2}}.items():
        callbacks = [ProgressionMonitor(max_samples=max_samples), RunRecorder()]
        run = trainer(tmp_path / name, callbacks, **options)
        run.validate(tiny.module(), tiny.digits(eval_batch_size=50), verbose=False)
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert two.samples == 360
    assert two.progression["samples"] == min(max_samples, 360)
    same(two.progression, one.progression)


def test_separate_heads_are_held_against_their_own_layer(tmp_path: Path) -> None:
    shared, separate = tiny.module(), tiny.module(head=SeparateHeads)
    for name, module in {"shared": shared, "separate": separate}.items():
        run = trainer(tmp_path / name, [ProgressionMonitor(), RunRecorder()])
        run.validate(module, tiny.digits(), verbose=False)
    first, second = (
        record(tmp_path / name).progression["neural_collapse"]["self_duality"] for name in ("shared", "separate")
    )
    assert second[-1] == pytest.approx(first[-1])
    assert abs(second[0] - first[0]) > 1e-3


def test_a_head_that_reads_raw_layers_is_held_against_raw_means(tmp_path: Path) -> None:
    module = tiny.module(head=partial(SharedHead, norm="none"))
    trainer(tmp_path, [ProgressionMonitor(), RunRecorder()]).validate(module, tiny.digits(), verbose=False)
    features, classes, _ = outputs(module)
    means = torch.stack([features[0, classes == number].double().mean(0) for number in range(10)])
    means = means - means.mean(0)
    weight = module.head.classifier.weight.detach().double()  # type: ignore[union-attr, operator]
    apart = (weight / weight.norm() - means / means.norm()).norm().item()
    assert record(tmp_path).progression["neural_collapse"]["self_duality"][0] == pytest.approx(apart, rel=1e-4)


def test_a_classifier_of_several_maps_has_no_nc3(tmp_path: Path) -> None:
    module = tiny.module()
    module.head.classifier = nn.Sequential(nn.Tanh(), module.head.classifier)  # type: ignore[arg-type]
    trainer(tmp_path, [ProgressionMonitor(), RunRecorder()]).validate(module, tiny.digits(), verbose=False)
    assert "self_duality" not in record(tmp_path).progression["neural_collapse"]


def test_without_classes_their_part_is_absent(tmp_path: Path) -> None:
    """As with tokens, whose targets have a probability but no mean worth its name."""
    module = tiny.module()
    module.backbone.reads_tokens = True
    run = trainer(tmp_path, [ProgressionMonitor(), RunRecorder()])
    run.validate(module, tiny.digits(), verbose=False)
    measured = record(tmp_path).progression
    assert not {"neural_collapse", "class_paths"} & set(measured)
    assert len(measured["target_probability"]) == 3
    assert "val/nc1" not in run.callback_metrics
    assert not (tmp_path / "figures" / "val-class_paths-epoch-0000.png").exists()


def test_broken_features_are_measured_too(tmp_path: Path) -> None:
    module = tiny.module()
    nn.init.constant_(module.backbone.model.blocks[1].mlp.fc2.bias, torch.nan)  # type: ignore[union-attr, index, arg-type]
    run = trainer(tmp_path, [ProgressionMonitor(), RunRecorder()])
    with pytest.warns(UserWarning, match="features are not finite at layer 2, 3"):
        run.validate(module, tiny.digits(), verbose=False)
    measured = record(tmp_path).progression
    assert all(map(math.isnan, measured["cosine"]))
    assert [math.isnan(value) for value in measured["target_probability"]] == [False, True, True]
    assert [math.isnan(value) for value in measured["neural_collapse"]["self_duality"]] == [False, True, True]


def test_what_cannot_be_measured_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="max_samples: expected at least 4, got 2"):
        ProgressionMonitor(max_samples=2)
    with pytest.raises(UserError, match="centering: expected one of"):
        ProgressionMonitor(centering="batch")  # type: ignore[arg-type]


def measured_alone(features: Tensor, classes: Tensor | None) -> Any:
    """What the monitor tells of one batch, without a trainer."""
    layers, samples, _ = features.shape
    empty = torch.empty(0)
    log_odds = empty if classes is None else torch.randn(layers, samples)
    readout = Readout(empty, empty, empty, log_odds)
    monitor = ProgressionMonitor()
    metrics = monitor.make_metrics(tiny.module())
    monitor.update(metrics, LayerOutput(LayerFeatures(features, classes, torch.arange(samples)), readout))
    return monitor.measure(metrics)


def test_without_targets_features_are_measured_all_the_same() -> None:
    features = torch.randn(3, 30, 16, generator=torch.Generator().manual_seed(0))
    without = measured_alone(features, None)
    assert without.record["progression"] == progression(features, None)
    assert list(without.scalars) == ["cosine_rises", "path_over_chord", "cosine_cka_pearson", "cosine_cka_spearman"]
    assert list(without.figures) == ["progression"]


def test_one_class_has_a_path_and_no_collapse() -> None:
    features = torch.randn(3, 30, 16, generator=torch.Generator().manual_seed(0))
    one = measured_alone(features, torch.full((30,), 7)).record["progression"]
    assert "neural_collapse" not in one
    assert one["class_paths"]["classes"] == [7]
    assert len(one["target_probability"]) == 3


def test_a_model_of_one_layer_is_refused() -> None:
    module = tiny.module()
    module.backbone.num_layers = 1
    with pytest.raises(UserError, match="needs two layers or more, but the model has 1"):
        ProgressionMonitor().make_metrics(module)
