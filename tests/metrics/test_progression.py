"""All measures of a path together: what they share, and what is said of broken features."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.metrics import (
    agreement,
    class_means,
    class_paths,
    effective_rank,
    intrinsic_dimension,
    neural_collapse,
    progression,
    self_duality,
)
from layersim.similarity import cosine, linear_cka

from .paths import drawn, straight


def test_a_straight_path_keeps_every_promise() -> None:
    features = straight(layers=5, samples=60)
    record = progression(features, torch.arange(60) % 3)
    assert record["cosine_rises"] == 1
    assert record["cosine_rises_by_step"] == [1] * 4
    assert record["path_over_chord"] == pytest.approx(1)
    assert record["angle"] == pytest.approx([0] * 3, abs=1e-5)
    assert record["distance_to_segment"] == pytest.approx([0] * 5, abs=1e-9)
    expected = agreement(cosine(features), linear_cka(features, estimator="debiased"))
    assert record["cosine_cka"] == {"pearson": expected.pearson, "spearman": expected.spearman}
    assert record["neural_collapse"]["classes"] == record["class_paths"]["classes"] == [0, 1, 2]


def test_a_crooked_one_does_not() -> None:
    record = progression(drawn(5, 60, 8), None)
    assert record["cosine_rises"] < 0.2
    assert record["path_over_chord"] > 2
    assert min(record["angle"]) > 90
    assert not {"neural_collapse", "class_paths"} & set(record), "no classes"


def test_a_rotation_and_a_scale_of_all_layers_change_nothing() -> None:
    features, classes = drawn(4, 50, 6), torch.arange(50) % 3
    turned = 100 * features @ torch.linalg.qr(drawn(6, 6, seed=1)).Q
    first, second = progression(features, classes), progression(turned, classes)
    for key in set(first) - {"cosine_cka", "neural_collapse", "class_paths", "samples", "centering"}:
        assert second[key] == pytest.approx(first[key], rel=1e-9, abs=1e-9), key
    for part in ("cosine_cka", "neural_collapse"):
        for key in first[part]:
            assert second[part][key] == pytest.approx(first[part][key], rel=1e-4, abs=1e-5), key


def test_one_warning_names_the_layer_that_is_not_finite() -> None:
    features = drawn(5, 40, 6)
    features[2, 7, 1] = math.nan
    with pytest.warns(UserWarning, match=r"NaN in cosine, .*: features are not finite at layer 3 \(layers") as caught:
        record = progression(features, torch.arange(40) % 2)
    assert len(caught) == 1
    assert [math.isnan(value) for value in record["cosine"]] == [False, False, True, False, False]
    assert [math.isnan(value) for value in record["cosine_rises_by_step"]] == [False, True, True, False]
    assert [math.isnan(value) for value in record["distance_to_segment"]] == [False, False, True, False, False]
    assert [math.isnan(value) for value in record["neural_collapse"]["nc1"]] == [False, False, True, False, False]
    assert math.isnan(record["path_over_chord"])
    assert math.isnan(record["cosine_cka"]["pearson"])
    whole = drawn(5, 40, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        progression(whole, torch.arange(40) % 2)


def test_a_block_that_does_nothing_is_named() -> None:
    features = drawn(5, 40, 6)
    features[3, 7] = features[2, 7]
    with pytest.warns(UserWarning, match="NaN in angle: a sample's features do not change from layer 3 to the next"):
        record = progression(features, None)
    assert [math.isnan(value) for value in record["angle"]] == [False, True, True]
    assert [math.isinf(value) for value in record["skip_over_residual"]] == [False, False, True, False]


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UserError, match="progression over layers needs at least 4 samples, got 3"):
        progression(drawn(5, 3, 6), None)


@pytest.mark.parametrize("form", [Tensor.numpy, list, lambda layers: layers.clone().requires_grad_()])
def test_features_classes_and_weights_may_be_arrays_or_lists_or_have_a_gradient(form: Callable[[Tensor], Any]) -> None:
    features, classes = drawn(3, 40, 6).float(), torch.arange(40) % 3
    expected = progression(features, classes)
    for labels in (classes, classes.tolist(), classes.numpy()):
        assert progression(form(features), labels) == expected
        assert torch.equal(
            class_means(features[0], labels, [0, 2]), class_means(features[0], classes, torch.tensor([0, 2]))
        )
    assert torch.equal(effective_rank(form(features)).detach(), effective_rank(features))
    assert torch.equal(intrinsic_dimension(form(features))[0].detach(), intrinsic_dimension(features)[0])
    matrix = cosine(features)
    for one in (matrix.numpy(), matrix.tolist(), matrix.clone().requires_grad_()):
        assert agreement(one, matrix.square()) == agreement(matrix, matrix.square())
    duality = self_duality(form(features[:, :3]), form(features[:, 3:6])).detach()
    assert torch.equal(duality, self_duality([*features[:, :3]], [*features[:, 3:6]]))


@pytest.mark.parametrize("measure", [neural_collapse, class_paths, progression])
def test_classes_are_as_many_as_samples(measure: Callable[..., object]) -> None:
    for came in (39, 80):
        with pytest.raises(UserError, match=rf"targets: expected \(40,\) classes, one a sample, got shape \({came},\)"):
            measure(drawn(3, 40, 6), torch.zeros(came, dtype=torch.int64))
    with pytest.raises(UserError, match="max_classes: expected at least 1, got 0"):
        class_paths(drawn(3, 40, 6), [0] * 40, max_classes=0)
