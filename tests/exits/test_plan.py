"""Predicted seconds against sums written out, and the choice that follows from them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from layersim.errors import UserError
from layersim.exits import Confidence, Costs, ExitTable, measure_costs, plan_exits, speed
from layersim.exits.plan import batch_sizes, full_batches
from layersim.heads import SharedHead
from tests.tiny import backbone

LINEAR = Costs((1, 2, 4), (1.0, 1.5, 2.5), (2.0, 3.0, 5.0), (0.0, 0.25, 0.5), (0.5, 1.0, 2.0), (1.0, 2.0, 4.0))
"""With exits 0.5 + n/2 around, 1 + n a layer, compaction not on a line; cut: n/2 around, n a layer."""


def test_seconds_are_those_of_who_remains() -> None:
    """Four samples that leave at layers 1, 1, 2 and 3 of 3: 4, then 2, then 1 remain, and two are taken out twice."""
    layers = np.array([0, 0, 1, 2])
    assert LINEAR.of_exits(layers, 3, 4) == pytest.approx((2.5 + (5 + 3 + 2) + (0.25 + 0.0)) / 4)
    # in pairs (0, 0) and (1, 2): the first stop after a layer
    assert LINEAR.of_exits(layers, 3, 2) == pytest.approx(((1.5 + 3) + (1.5 + 3 + 3 + 2 + 0.0)) / 4)
    assert LINEAR.of_exits(layers, 3, 1) == pytest.approx((4 * 1 + 2 * (1 + 1 + 2 + 3)) / 4)
    assert LINEAR.of_exits(layers[:1], 3, 3) == pytest.approx((2.0 + 4.0) / 3)  # repeated; between two sizes
    assert LINEAR.of_cut(2, 4) == pytest.approx((2 + 2 * 4) / 4)


def test_sizes() -> None:
    assert [batch_sizes(most) for most in (1, 2, 3, 64)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 4, 8, 16, 32, 64)]
    batches = [{"image": torch.zeros(size)} for size in (4, 3, 4)]
    assert full_batches(batches) == [batches[0], batches[2]]


def test_costs_come_from_batches_of_which_it_is_known_who_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts what is computed finds what each part is made to cost."""
    model = backbone()
    counted = {"seconds": 0.0}

    def timed(run: Callable[[Any], object], batches: list[Mapping[str, Any]], _: object) -> float:
        before = counted["seconds"]
        for batch in batches:
            run(batch)
        return counted["seconds"] - before

    def of(module: torch.nn.Module, price: Callable[[int], float]) -> None:
        module.register_forward_hook(
            lambda _, given, __: counted.update(seconds=counted["seconds"] + price(len(given[0])))
        )

    monkeypatch.setattr(speed, "timed", timed)
    monkeypatch.setattr(speed, "_LEAST", 0.0)
    of(model.model.patch_embed, lambda rows: 7 + rows)
    for block in model.blocks:
        of(block, lambda rows: 3 + 2 * rows)

    def cut(depth: int) -> Callable[[Mapping[str, Any]], object]:
        return lambda batch: model(batch, [depth - 1])

    batch = {"image": torch.randn(4, 1, 8, 8), "label": torch.zeros(4)}
    costs = measure_costs(model, SharedHead(model), Confidence(), cut, [batch, {"image": torch.randn(3, 1, 8, 8)}])
    assert costs.sizes == (1, 2, 4)
    np.testing.assert_allclose(costs.layer, [5, 7, 11])
    np.testing.assert_allclose(costs.start, [8, 9, 11])
    np.testing.assert_allclose(costs.cut_layer, [5, 7, 11])
    np.testing.assert_allclose(costs.cut_start, [8, 9, 11])
    np.testing.assert_allclose(costs.compaction, 0, atol=1e-9)


def test_the_cheapest_way_at_an_accuracy() -> None:
    targets = torch.zeros(4, dtype=torch.long)
    predictions = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    scores = torch.tensor([[0.9, 0.9, 0.4, 0.3], [0.9, 0.9, 0.8, 0.3], [0.9, 0.9, 0.9, 0.9]])
    table = ExitTable(scores, predictions, scores, scores, scores, targets)
    thresholds = [0.0, 0.35, 0.5, 1.0]
    found = plan_exits(table, thresholds, LINEAR, 1.0, {"truncation": (2, 0.75), "removal": (2, 1.0)})
    names = [way.name for way in found.ways]
    assert names == ["all layers", "exits", "removal"]  # truncation is not accurate enough
    whole, exits, removal = found.ways
    assert (exits.threshold, exits.accuracy, exits.layers) == (0.5, 1.0, pytest.approx((1 + 1 + 2 + 3) / 4))
    assert exits.seconds == [LINEAR.of_exits(np.array([0, 0, 1, 2]), 3, size) for size in (1, 2, 4)]
    assert whole.seconds == [LINEAR.of_cut(3, size) for size in (1, 2, 4)]
    assert removal.seconds == [LINEAR.of_cut(2, size) for size in (1, 2, 4)]
    # 4.5, 3.5, 3.1875 with exits against 3.5, 3.5, 3.5
    assert found.pays_from == 4
    assert found.pays_up_to == 1.0
    assert min(found.ways, key=lambda way: way.seconds[2]).name == "removal"
    none = plan_exits(table, [0.0], LINEAR, 1.0, {})
    assert [way.name for way in none.ways] == ["all layers"]
    assert none.pays_from is None


def test_one_layer_has_nothing_to_plan() -> None:
    model = backbone()
    model.num_layers = 1
    with pytest.raises(UserError, match="nothing to plan"):
        measure_costs(model, SharedHead(model), Confidence(), lambda depth: lambda batch: None, [])
