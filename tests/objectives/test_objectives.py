"""Objectives: closed forms, and which layers they ask for."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from layersim.errors import UserError
from layersim.heads import Head, SeparateHeads, SharedHead
from layersim.objectives import (
    Aligned,
    Alternating,
    CosineRegularized,
    Distilled,
    LastLayer,
    Mixed,
    Objective,
    Progressive,
    Step,
    WeightedSum,
    layer_weights,
)
from tests import tiny

FIRST = Step()


def at(number: int, length: int | None = None) -> Step:
    return Step(number, length=length)


@pytest.mark.parametrize("num_layers", [1, 2, 6, 12])
@pytest.mark.parametrize("kind", ["linear", "uniform", "last"])
def test_named_weights_sum_to_one(kind: str, num_layers: int) -> None:
    assert math.isclose(math.fsum(layer_weights(kind, num_layers)), 1.0)  # type: ignore[arg-type]


def test_linear_weights_are_the_papers() -> None:
    assert layer_weights("linear", 3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert layer_weights("uniform", 4) == [0.25] * 4
    assert layer_weights("last", 3) == [0, 0, 1]


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, lambda given: np.array(given[::-1])[::-1]])
@pytest.mark.parametrize("objective", [Aligned, Alternating, Distilled, Mixed])
def test_a_users_numbers_are_taken_as_they_are_however_they_come(objective: type, form: Any) -> None:
    given = [0.5, 0.125, 0.375]
    assert layer_weights(form(given), 3) == given
    assert objective(weights=form(given)).weights(3, None) == given
    assert objective(weights=form([1, 0, 0]) if objective is not Distilled else form([0, 0, 1])).choices(3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "Expected 3 layer weights.*got 2"),
        ([1.5, -0.5, 0.0], "not negative"),
        ([0.5, 0.2, 0.2], r"sum to one, but .* sums to 0\.9"),
        ([math.nan, 0.5, 0.5], "finite"),
        ("quadratic", "linear, uniform, last or a list"),
        (None, "linear, uniform, last or a list of numbers, but got None"),
        (["0.5", "0.25", "0.25"], "a list of numbers, but got .'0.5'"),
        ({1: 0.5, 2: 0.25, 3: 0.25}, "a list of numbers, but got {1: 0.5"),
        (np.eye(3), "a list of numbers, but got array"),
        (np.array([math.nan, 0.5, 0.5]), "finite"),
    ],
)
@pytest.mark.parametrize("objective", [Aligned, Alternating, CosineRegularized])
def test_unusable_weights_are_refused(objective: type, weights: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective(weights=weights).build(3)


def test_aligned_asks_for_every_layer() -> None:
    assert Aligned("linear").layers(3, FIRST) == [0, 1, 2]
    assert Aligned("linear").weights(3, FIRST) == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_layers_without_weight_are_not_asked_for() -> None:
    assert Aligned([0.0, 0.5, 0.0, 0.5]).layers(4, FIRST) == [1, 3]
    assert LastLayer().layers(12, at(5)) == [11]


def test_sampled_layers_estimate_the_loss_without_bias() -> None:
    """The mean of the weights over many steps is the aligned loss's own, within four standard errors."""
    objective, steps, layers = Aligned("linear", sampled_layers=2), 4000, 6
    drawn = torch.tensor([objective.weights(layers, at(step)) for step in range(steps)], dtype=torch.float64)
    expected = torch.tensor(layer_weights("linear", layers), dtype=torch.float64)
    error = drawn.std(dim=0) / steps**0.5
    assert ((drawn.mean(dim=0) - expected).abs() <= 4 * error + 1e-12).all()
    assert (drawn[:, -1] == expected[-1]).all(), "the last layer is always read"
    biased = (drawn > 0).double() / 3  # equal weights on the layers drawn, the control
    assert ((biased.mean(dim=0) - expected).abs() > 4 * biased.std(dim=0) / steps**0.5).any()


def test_a_sampled_step_reads_few_layers_and_is_the_same_everywhere() -> None:
    objective = Aligned(sampled_layers=2)
    for step in range(50):
        assert len(objective.layers(12, at(step))) <= 3
        assert objective.layers(12, at(step))[-1] == 11
        assert objective.weights(12, at(step)) == Aligned(sampled_layers=2).weights(12, at(step))
    assert len({tuple(objective.layers(12, at(step))) for step in range(50)}) > 20
    assert objective.weights(12, None) == layer_weights("linear", 12)
    with pytest.raises(UserError, match="at least 1, got 0"):
        Aligned(sampled_layers=0)
    assert Aligned("last", sampled_layers=3).weights(4, FIRST) == [0, 0, 0, 1]


def test_each_seed_samples_layers_of_its_own() -> None:
    """Also in another order: step 1 of seed 0 is not step 0 of seed 1."""

    def drawn(seed: int) -> list[list[float]]:
        objective = Aligned("uniform", sampled_layers=8)
        return [objective.weights(24, Step(step, seed=seed)) for step in range(40)]

    draws = [drawn(seed) for seed in (0, 1, 2, 2**64 - 1)]
    assert draws == [drawn(seed) for seed in (0, 1, 2, 2**64 - 1)]
    every = [tuple(weights) for seed in draws for weights in seed]
    assert len(set(every)) > 0.95 * len(every)


def test_alternating_counts_optimizer_steps() -> None:
    def aligned_steps(objective: Alternating) -> list[int]:
        return [step for step in range(8) if len(objective.layers(4, at(step))) == 4]

    assert aligned_steps(Alternating()) == [1, 3, 5, 7]
    assert aligned_steps(Alternating(phase=1)) == [0, 2, 4, 6]
    assert aligned_steps(Alternating(period=4)) == [3, 7]
    assert aligned_steps(Alternating(period=1)) == list(range(8))
    assert Alternating().layers(4, FIRST) == [3]
    assert Alternating().weights(4, None) == layer_weights("linear", 4), "evaluation reports the aligned loss"


@pytest.mark.parametrize(("period", "phase"), [(0, 0), (2, 2), (2, -1)])
def test_alternating_refuses_a_phase_outside_its_period(period: int, phase: int) -> None:
    with pytest.raises(UserError, match=r"period|phase"):
        Alternating(period=period, phase=phase)


def test_mixed_switches_once_where_it_is_told() -> None:
    objective = Mixed(switch=0.4)
    assert [len(objective.layers(4, at(step, 10))) for step in range(12)] == [1] * 4 + [4] * 8
    assert objective.weights(4, at(3, 10)) == layer_weights("last", 4)
    assert objective.weights(4, at(4, 10)) == objective.weights(4, None) == layer_weights("linear", 4)
    always, never = Mixed(switch=0.0), Mixed(switch=1.0)
    assert all(always.weights(4, at(step, 10)) == layer_weights("linear", 4) for step in range(10))
    assert all(never.weights(4, at(step, 10)) == layer_weights("last", 4) for step in range(10))


def test_progressive_moves_evenly_from_start_to_end() -> None:
    objective = Progressive(start=[1.0, 0.0, 0.0], end="linear", until=0.5)
    assert objective.weights(3, at(0, 8)) == [1, 0, 0]
    assert objective.layers(3, at(0, 8)) == [0], "what has no weight yet is not computed"
    assert objective.weights(3, at(1, 8)) == pytest.approx([3 / 4 + 1 / 24, 1 / 12, 1 / 8])
    assert objective.weights(3, at(2, 8)) == pytest.approx([7 / 12, 1 / 6, 1 / 4])
    for step in (at(4, 8), at(5, 8), at(8, 8), None):
        assert objective.weights(3, step) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    for number in range(9):
        assert math.fsum(objective.weights(3, at(number, 8))) == pytest.approx(1.0)


@pytest.mark.parametrize("make", [Mixed, Progressive])
def test_a_schedule_depends_on_the_share_that_is_done_alone(make: type[WeightedSum]) -> None:
    objective = make()
    before = [objective.weights(4, at(step, 20)) for step in range(20)]
    assert [objective.weights(4, at(step, 40)) for step in range(20)] != before
    assert [objective.weights(4, at(2 * step, 40)) for step in range(20)] == before


@pytest.mark.parametrize("make", [Mixed, Progressive])
def test_a_schedule_needs_a_length(make: type[WeightedSum]) -> None:
    with pytest.raises(UserError, match="length is not known"):
        make().weights(4, FIRST)
    assert make().weights(4, None) == layer_weights("linear", 4), "evaluation needs none"


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (Mixed, {"switch": 1.5}, r"switch at least 0 and at most 1, but got 1\.5"),
        (Mixed, {"weights": [0.5, 0.2]}, "sum to one"),
        (Progressive, {"until": 0.0}, "until above 0"),
        (Progressive, {"until": -1.0}, "until above 0"),
        (Progressive, {"start": "first"}, "linear, uniform, last or a list"),
        (Distilled, {"alpha": 1.1}, "alpha at least 0"),
        (Distilled, {"temperature": 0.0}, "temperature > 0"),
        (Distilled, {"temperature": "2"}, "temperature > 0, but got '2'"),
        (Distilled, {"temperature": math.inf}, "temperature > 0, but got inf"),
        (CosineRegularized, {"beta": "1"}, "beta ≥ 0, but got '1'"),
        (CosineRegularized, {"beta": math.nan}, "beta ≥ 0, but got nan"),
        (Aligned, {"sampled_layers": 1.5}, r"sampled_layers must be a whole number of at least 1, got 1\.5"),
        (Aligned, {"sampled_layers": "2"}, "sampled_layers must be a whole number of at least 1, got '2'"),
        (Alternating, {"period": 1.5}, r"period must be a whole number of at least 1, got 1\.5"),
        (Alternating, {"phase": 0.5}, r"phase must be a whole number of at least 0, got 0\.5"),
        (Distilled, {"weights": [0.5, 0.5, 0.0]}, "since it teaches"),
    ],
)
def test_options_out_of_range_are_refused(objective: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective(**options)


@pytest.mark.parametrize(
    ("objective", "choices"),
    [
        (LastLayer(), [[2]]),
        (Aligned(), [[0, 1, 2]]),
        (Aligned(sampled_layers=2), [[0, 2], [1, 2]]),
        (Aligned([0.5, 0.5, 0.0], sampled_layers=2), [[0], [1]]),
        (Aligned("last", sampled_layers=2), [[2]]),
        (Alternating(), [[2], [0, 1, 2]]),
        (CosineRegularized(), [[2]]),
        (Distilled("uniform"), [[0, 1, 2]]),
        (Mixed(), [[2], [0, 1, 2]]),
        (Progressive(), [[2], [0, 1, 2]]),
        (Progressive(start=[1.0, 0.0, 0.0]), [[0], [0, 1, 2]]),
    ],
)
def test_choices_are_what_steps_read_at_the_least(objective: Objective, choices: list[list[int]]) -> None:
    """Every step reads one of them or more, so that a head's parameters without a gradient are foreseen."""
    assert objective.choices(3) == choices
    assert all(any({*choice} <= {*objective.layers(3, at(step, 30))} for choice in choices) for step in range(60))


@pytest.mark.parametrize(
    ("objective", "head", "unused"),
    [
        (Mixed(), SharedHead, False),
        (Mixed(), SeparateHeads, True),
        (Progressive(), SeparateHeads, True),
        (Progressive(start=[1.0, 0.0, 0.0]), SharedHead, True),
        (Progressive(start="uniform"), SeparateHeads, False),
        (Distilled(), SeparateHeads, False),
        (CosineRegularized(), SharedHead, False),
        (CosineRegularized(), SeparateHeads, True),
        (Aligned(sampled_layers=2), SeparateHeads, True),
    ],
)
def test_the_module_foresees_unused_parameters(objective: Objective, head: type[Head], unused: bool) -> None:
    assert tiny.module(objective=objective, head=head).has_unused_parameters is unused


def test_the_trainer_tells_how_long_the_training_is(tmp_path: Path) -> None:
    """Six optimizer steps of two micro-batches, the first three at the last layer."""
    module, read = tiny.module(objective=Mixed()), []
    original = module.head.loss
    module.head.loss = lambda *given: read.append(len(given[2])) or original(*given)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(
        default_root_dir=tmp_path,
        max_epochs=2,
        limit_train_batches=6,
        limit_val_batches=0,
        accumulate_grad_batches=2,
        enable_model_summary=False,
        **quiet,
    ).fit(module, tiny.digits())
    assert read == [1] * 6 + [3] * 6
