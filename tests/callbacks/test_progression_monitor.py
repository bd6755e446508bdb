"""The monitor on a real trainer against the definitions on the outputs of the same batches."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from callbacks import ProgressionMonitor, RunRecorder
from layersim.errors import UserError
from layersim.heads import LinearProbes, SeparateHeads, SharedHead
from layersim.metrics import progression
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures, LayerOutput, Readout
from layersim.report.quantity import Quantity
from layersim.report.records import LayerRecord, read_records
from tests import tiny
from tests.callbacks.test_monitors import trainer

COLLAPSE = {"nc1", "within_over_between", "norm_spread", "cosine_spread", "simplex_gap"}


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
    told = record(tmp_path).quantities
    measured = {name: quantity.values for name, quantity in told.items()}
    features, classes, log_odds = outputs(module)
    assert told["path_over_chord"].options == {"samples": 360, "centering": "samples"}
    assert told["cosine_rises_by_step"].ticks == {"step": [1.5, 2.5]}
    assert told["angle"].ticks == {"inner layer": [2]}

    x = features.double() - features.double().mean(1, keepdim=True)
    cosines = torch.nn.functional.cosine_similarity(x, x[-1:], dim=2)
    for name, values in {"cosine": cosines, "target_probability": log_odds.double().sigmoid()}.items():
        rises = values.diff(dim=0) > 0
        assert measured["cosine_path" if name == "cosine" else name] == pytest.approx(values.mean(1).tolist(), abs=1e-6)
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
    for name in COLLAPSE:
        assert measured[name] == pytest.approx(expected["neural_collapse"][name], rel=1e-3), name
    assert told["class_paths"].ticks == {"class": list(range(10))}
    for number, way in enumerate(expected["class_paths"]["points"]):
        for at, point in enumerate(way):
            assert measured["class_paths"][number][at] == pytest.approx(point, abs=1e-3)
    with torch.no_grad():
        read = module.head.final_norm(features)  # type: ignore[operator]
    means = torch.stack([read[:, classes == number].mean(1) for number in range(10)], dim=1).double()
    means = means - means.mean(1, keepdim=True)
    weight = module.head.classifier.weight.detach().double()  # type: ignore[union-attr, operator]
    apart = [(weight / weight.norm() - mean / mean.norm()).norm().item() for mean in means]
    assert measured["self_duality"] == pytest.approx(apart, rel=1e-4)

    logged = {name.removeprefix("val/"): value.item() for name, value in run.callback_metrics.items()}
    assert {name: value for name, value in logged.items() if "train" not in name and "/layer_" not in name} == {
        "cosine_rises": pytest.approx(measured["cosine_rises"]),
        "target_probability_rises": pytest.approx(measured["target_probability_rises"]),
        "path_over_chord": pytest.approx(measured["path_over_chord"]),
        "cosine_cka_pearson": pytest.approx(expected["cosine_cka"]["pearson"], rel=1e-3),
        "cosine_cka_spearman": pytest.approx(expected["cosine_cka"]["spearman"], rel=1e-3),
        "class_plane": pytest.approx(expected["class_paths"]["explained"], rel=1e-3),
        **{name: pytest.approx(measured[name][-1]) for name in (*COLLAPSE, "self_duality")},
    }
    settings = {type(value) for quantity in told.values() for value in quantity.options.values()}
    assert settings <= {int, str}, "how it was measured, which seeds share, and nothing that was"
    for name in ("cosine_path", "target_probability", "distance_to_segment", "nc1"):
        by_layer = [logged[f"{name}/layer_{layer:02d}"] for layer in (1, 2, 3)]
        assert by_layer == pytest.approx(measured[name]), name
    for name in ("progression", "class_paths"):
        assert (tmp_path / "figures" / f"val-{name}-epoch-0001.png").is_file()


@pytest.mark.parametrize("max_samples", [100, 4096])
def test_two_processes_equal_one(tmp_path: Path, max_samples: int) -> None:
    """Of 360 samples in batches of 50 one process reads 200, the other 160."""
    for name, options in {"one": {}, "two": {"strategy": "ddp_fork", "devices": 2}}.items():
        callbacks = [ProgressionMonitor(max_samples=max_samples), RunRecorder()]
        run = trainer(tmp_path / name, callbacks, **options)
        run.validate(tiny.module(), tiny.digits(eval_batch_size=50), verbose=False)
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert two.samples == 360
    assert two.quantities["path_over_chord"].options["samples"] == min(max_samples, 360)
    assert list(two.quantities) == list(one.quantities)
    for name, expected in one.quantities.items():
        found = two.quantities[name]
        pair = (torch.tensor(quantity.values, dtype=torch.float64) for quantity in (found, expected))
        torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6)
        options = {key: pytest.approx(value) for key, value in expected.options.items()}
        assert replace(found, values=[]) == replace(expected, values=[], options=options)


def test_separate_heads_are_held_against_their_own_layer(tmp_path: Path) -> None:
    shared, separate = tiny.module(), tiny.module(head=SeparateHeads)
    for name, module in {"shared": shared, "separate": separate}.items():
        run = trainer(tmp_path / name, [ProgressionMonitor(), RunRecorder()])
        run.validate(module, tiny.digits(), verbose=False)
    first, second = (record(tmp_path / name).values("self_duality") for name in ("shared", "separate"))
    assert second[-1] == pytest.approx(first[-1])
    assert abs(second[0] - first[0]) > 1e-3


@pytest.mark.parametrize("head", [partial(SharedHead, norm="none"), LinearProbes])
def test_a_head_that_reads_raw_layers_is_held_against_raw_means(head: Any, tmp_path: Path) -> None:
    module = tiny.module(head=head)
    for part in module.head.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight)  # probes start at zero
    trainer(tmp_path, [ProgressionMonitor(), RunRecorder()]).validate(module, tiny.digits(), verbose=False)
    features, classes, _ = outputs(module)
    means = torch.stack([features[0, classes == number].double().mean(0) for number in range(10)])
    means = means - means.mean(0)
    weight = module.head.parts_at(0)[1].weight.detach().double()  # type: ignore[union-attr, operator]
    apart = (weight / weight.norm() - means / means.norm()).norm().item()
    assert record(tmp_path).values("self_duality")[0] == pytest.approx(apart, rel=1e-4)


def test_a_classifier_of_several_maps_has_no_nc3(tmp_path: Path) -> None:
    module = tiny.module()
    module.head.classifier = nn.Sequential(nn.Tanh(), module.head.classifier)  # type: ignore[arg-type]
    trainer(tmp_path, [ProgressionMonitor(), RunRecorder()]).validate(module, tiny.digits(), verbose=False)
    found = record(tmp_path).quantities.keys()
    assert found >= COLLAPSE
    assert "self_duality" not in found


def test_without_classes_their_part_is_absent(tmp_path: Path) -> None:
    """As with tokens, whose targets have a probability but no mean worth its name."""
    module = tiny.module()
    module.backbone.reads_tokens = True
    run = trainer(tmp_path, [ProgressionMonitor(), RunRecorder()])
    run.validate(module, tiny.digits(), verbose=False)
    measured = record(tmp_path).quantities
    assert not (COLLAPSE | {"self_duality", "class_paths"}) & measured.keys()
    assert len(measured["target_probability"].values) == 3
    assert "val/nc1" not in run.callback_metrics
    assert not (tmp_path / "figures" / "val-class_paths-epoch-0000.png").exists()


@pytest.mark.filterwarnings("ignore:features are not finite first at layer 2")  # the module's own line
def test_broken_features_are_measured_too(tmp_path: Path) -> None:
    module = tiny.module()
    nn.init.constant_(module.backbone.model.blocks[1].mlp.fc2.bias, torch.nan)  # type: ignore[union-attr, index, arg-type]
    run = trainer(tmp_path, [ProgressionMonitor(), RunRecorder()])
    with pytest.warns(UserWarning, match="features are not finite at layer 2, 3"):
        run.validate(module, tiny.digits(), verbose=False)
    measured = record(tmp_path)
    assert all(map(math.isnan, measured.values("cosine_path")))
    for name in ("target_probability", "self_duality"):
        assert [math.isnan(value) for value in measured.values(name)] == [False, True, True]


def test_what_cannot_be_measured_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="max_samples: expected at least 4, got 2"):
        ProgressionMonitor(max_samples=2)
    with pytest.raises(UserError, match="centering: expected one of"):
        ProgressionMonitor(centering="batch")  # type: ignore[arg-type]


def measured_alone(features: Tensor, classes: Tensor | None) -> tuple[ProgressionMonitor, dict[str, Quantity]]:
    """A monitor and what it tells of one batch, without a trainer."""
    layers, samples, _ = features.shape
    empty = torch.empty(0)
    log_odds = empty if classes is None else torch.randn(layers, samples)
    readout = Readout(empty, empty, empty, log_odds, empty)
    monitor = ProgressionMonitor()
    metrics = monitor.make_metrics(tiny.module())
    monitor.update(metrics, LayerOutput(LayerFeatures(features, classes, torch.arange(samples)), readout))
    return monitor, monitor.measure(metrics)


def test_without_targets_features_are_measured_all_the_same() -> None:
    features = torch.randn(3, 30, 16, generator=torch.Generator().manual_seed(0))
    monitor, without = measured_alone(features, None)
    expected = progression(features, None)
    expected["cosine_path"] = expected.pop("cosine")
    expected |= {f"cosine_cka_{name}": value for name, value in expected.pop("cosine_cka").items()}
    options = {name: expected.pop(name) for name in ("samples", "centering")}
    assert {name: quantity.values for name, quantity in without.items()} == expected
    assert all(quantity.options == options for quantity in without.values())
    scalars = [name for name, quantity in without.items() if not quantity.axes]
    assert scalars == ["cosine_rises", "path_over_chord", "cosine_cka_pearson", "cosine_cka_spearman"]
    assert list(monitor.figures(without)) == ["progression"]


def test_one_class_has_a_path_and_no_collapse() -> None:
    features = torch.randn(3, 30, 16, generator=torch.Generator().manual_seed(0))
    _, one = measured_alone(features, torch.full((30,), 7))
    assert not COLLAPSE & one.keys()
    assert one["class_paths"].ticks == {"class": [7]}
    assert len(one["target_probability"].values) == 3


def test_a_model_of_one_layer_is_refused() -> None:
    module = tiny.module()
    module.backbone.num_layers = 1
    with pytest.raises(UserError, match="needs two layers or more, but the model has 1"):
        ProgressionMonitor().make_metrics(module)
