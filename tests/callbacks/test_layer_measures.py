"""Layers of any model in a loop of one's own: the numbers of the Lightning callbacks, and nothing else changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from callbacks import (
    EpochSimilarity,
    ExitCurveMonitor,
    LayerAccuracyMonitor,
    LayerCalibrationMonitor,
    LayerGeometryMonitor,
    LayerMeasures,
    ProgressionMonitor,
    RunRecorder,
    SaturationMonitor,
    SimilarityHeatmaps,
)
from layersim.errors import UserError
from layersim.metrics import KeptSamples
from layersim.report.json_values import with_nan
from layersim.report.quantity import Quantity
from layersim.report.records import read_records
from layersim.similarity import RSA, linear_cka
from tests import tiny
from tests.backbones import tiny_transformers
from tests.callbacks.test_monitors import trainer

EVERY = ["accuracy", "saturation", "exits", "progression", "similarity", "calibration", "geometry"]
MONITORS: list[Any] = [
    LayerAccuracyMonitor,
    SaturationMonitor,
    ExitCurveMonitor,
    ProgressionMonitor,
    SimilarityHeatmaps,
    LayerCalibrationMonitor,
    LayerGeometryMonitor,
]
PARTS: dict[str, Any] = {"layers": "blocks.*", "norm": "norm", "head": "head"}


def loader() -> Any:
    data = tiny.digits()
    data.setup("validate")
    return data.val_dataloader()


def batches() -> list[dict[str, Tensor]]:
    return list(loader())


def shown(measures: LayerMeasures, given: list[Any]) -> dict[str, Quantity]:
    for batch in given:
        measures.update(batch)
    return measures.compute()


def same(found: dict[str, Quantity], expected: dict[str, Quantity], *, but: tuple[str, ...] = ()) -> None:
    assert [*found] == [*expected]
    for name in found.keys() - {*but}:
        assert found[name].to_json() == expected[name].to_json(), name


def test_our_own_module_gives_what_lightnings_callbacks_give(tmp_path: Path) -> None:
    own = tiny.module()
    run = trainer(tmp_path, [*(kind() for kind in MONITORS), RunRecorder()])
    run.validate(own, loader(), verbose=False)
    (expected,) = read_records(tmp_path / "layers.jsonl")
    measures = LayerMeasures(own, measures=EVERY)
    same(shown(measures, batches()), dict(expected.quantities))
    assert measures.write(tmp_path / "written").to_line() == expected.to_line()


def test_named_parts_give_the_same_and_so_does_the_backbone(tmp_path: Path) -> None:
    own = tiny.module()
    net = own.backbone.model
    expected = shown(LayerMeasures(own, measures=EVERY), batches())
    found = shown(LayerMeasures(net, measures=EVERY, **PARTS), batches())
    for name, quantity in found.items():
        if name != "loss":  # the module's objective is another
            ours, theirs = (torch.tensor(with_nan(one.to_json()["values"])) for one in (expected[name], quantity))
            torch.testing.assert_close(theirs, ours, msg=name, equal_nan=True)
    assert found["accuracy"].options == {"layers": ["blocks.0", "blocks.1", "blocks.2"], "pool": "cls"}
    same(
        shown(LayerMeasures(own.backbone, measures=["saturation", "cka"]), batches()),
        shown(LayerMeasures(own, measures=["saturation", "cka"]), batches()),
    )


def test_a_similarity_that_is_asked_for_twice_is_measured_once() -> None:
    own, given = tiny.module(), batches()
    asked = shown(LayerMeasures(own, measures=["similarity", "cka", "rsa"]), given)
    assert {*asked} == {"cosine", "cka", "rsa"}
    same({name: asked[name] for name in ("cosine", "cka")}, shown(LayerMeasures(own, measures="similarity"), given))


def test_batches_come_as_people_have_them() -> None:
    net = tiny.backbone().model
    given = [(batch["image"], batch["label"]) for batch in batches()]
    expected = shown(LayerMeasures(net, measures="accuracy", **PARTS), batches())
    same(shown(LayerMeasures(net, measures="accuracy", **PARTS), given), expected)
    for model, named in ((net, PARTS), (tiny.backbone(), {}), (tiny.module(), {})):
        lists = [{**batch, "label": batch["label"].tolist()} for batch in batches()]
        arrays = [{**batch, "label": batch["label"].numpy()} for batch in batches()]
        read = [shown(LayerMeasures(model, measures="saturation", **named), each) for each in (lists, arrays)]
        same(read[0], read[1])
        same(read[0], shown(LayerMeasures(model, measures="saturation", **named), batches()))
    images = [images for images, _ in given]
    cka = shown(LayerMeasures(net, "blocks.*", "cka"), images)["cka"].values
    same(shown(LayerMeasures(net, "blocks.*", "cka"), given), shown(LayerMeasures(net, "blocks.*", "cka"), images))
    taken: list[Tensor] = []
    for block in net.blocks:
        block.register_forward_hook(lambda module, inputs, output: taken.append(output[:, 0].detach()))
    net.eval()
    net(torch.cat(images))
    torch.testing.assert_close(
        torch.tensor(cka, dtype=torch.float64), linear_cka(torch.stack(taken), estimator="debiased")
    )


class Noisy(nn.Module):
    """Random in evaluation too, and with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        for block in self.blocks:
            x = nn.functional.dropout(block(x), 0.5, training=True)
        return self.norm(x * scale)  # type: ignore[no-any-return]


def test_nothing_of_the_loop_is_changed() -> None:
    torch.manual_seed(0)
    model = Noisy()
    model.blocks[0].eval()
    measures = LayerMeasures(model, "blocks.*", "cosine")
    state, kept = torch.get_rng_state(), {name: each.clone() for name, each in model.state_dict().items()}
    measures.update(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, model.blocks[0].training, model.blocks[1].training) == (True, False, True)
    assert all(torch.equal(kept[name], each) for name, each in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("family", ["BERT", "GPT-2"])
def test_layers_of_transformers_models_are_found(family: str) -> None:
    task = "classification" if family == "BERT" else "language-modeling"
    backbone = tiny_transformers.build((tiny_transformers.CLASSIFIERS | tiny_transformers.CAUSAL)[family], task)
    batch = tiny_transformers.batch_for(backbone)
    batch["label"] = torch.arange(len(batch["input_ids"])) if task == "classification" else batch["input_ids"]
    modes = [part.training for part in backbone.model.modules()]
    frozen = [each.requires_grad for each in backbone.model.parameters()]
    measures = LayerMeasures(backbone.model, measures=["accuracy", "cosine"])
    assert modes == [part.training for part in backbone.model.modules()]
    assert frozen == [each.requires_grad for each in backbone.model.parameters()]
    theirs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": batch["label"]}
    found = shown(measures, [theirs])
    same(found, shown(LayerMeasures(backbone, measures=["accuracy", "cosine"]), [batch]))
    everything = {**theirs, "attention_mask": torch.ones_like(batch["attention_mask"])}
    del theirs["attention_mask"]
    same(*(shown(LayerMeasures(backbone.model, measures="cosine"), [each]) for each in (theirs, everything)))


def held(metrics: list[Any]) -> int:
    """Bytes of the metrics' states."""
    states = [getattr(each, name) for each in metrics for name in each._defaults]
    tensors = [part for state in states for part in (state if isinstance(state, list) else [state])]
    return sum(each.untyped_storage().nbytes() for each in tensors)


def test_what_is_kept_does_not_grow() -> None:
    """The control keeps all that it is shown, as a loop that gathers hidden states does."""
    backbone = tiny.backbone()
    capped: list[Any] = ["accuracy", "saturation", SimilarityHeatmaps({"rsa": RSA(max_samples=64)})]
    measures, control = LayerMeasures(backbone, measures=capped), KeptSamples(max_samples=None)
    sizes = []
    for size in (2, 20):
        for _ in range(size):
            batch = {"image": torch.randn(64, 1, 8, 8), "label": torch.arange(64) % 10}
            measures.update(batch)
            control.update(backbone(batch))
        ours = [each for monitor in measures.monitors for each in [*monitor._metrics.values(), monitor._sample] if each]
        sizes.append((held(ours), held([control])))
    (early, begun), (late, grown) = sizes
    assert late <= early + 8  # the 64 samples take part of the second batch's storage, or all of their own
    assert grown - 8 == 11 * (begun - 8)  # beside the number of samples seen


def several(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    given = batches()  # all of them: with processes, the loader would give each its share
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for name, shares in {"shared": (slice(0, None, 2), slice(1, None, 2)), "alone": (slice(None), slice(0, 0))}.items():
        measures = LayerMeasures(tiny.backbone().model, measures=EVERY, **PARTS)
        for batch in given[shares[rank]]:
            measures.update(batch)
        measures.compute()  # may be looked at, and goes on
        record = measures.write(f"{folder}/{name}")
        found[name] = record.to_line()
    torch.save(found, f"{folder}/{rank}.pt")
    with pytest.raises(UserError, match="Nothing was measured yet"):
        LayerMeasures(tiny.backbone().model, "blocks.*").compute()
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Whatever their shares, and where one has nothing."""
    mp.start_processes(several, args=(str(tmp_path),), nprocs=2, start_method="fork")
    expected = shown(LayerMeasures(tiny.backbone().model, measures=EVERY, **PARTS), batches())
    for name in ("shared", "alone"):
        assert torch.load(tmp_path / "0.pt")[name] == torch.load(tmp_path / "1.pt")[name]
        (record,) = read_records(tmp_path / name / "layers.jsonl")
        assert (record.samples, [*record.quantities]) == (360, [*expected])
        for key, quantity in expected.items():
            told, own = record.quantities[key], quantity.to_json()
            assert told.options == quantity.options
            ours = torch.tensor(with_nan(own["values"]), dtype=torch.float64)
            there = torch.tensor(told.values, dtype=torch.float64)
            torch.testing.assert_close(there, ours, rtol=0, atol=1e-6, equal_nan=True, msg=key)
        assert record.values("saturation") == expected["saturation"].values
        assert record.values("accuracy") == expected["accuracy"].values


def test_a_record_its_page_and_its_figures_are_written(tmp_path: Path) -> None:
    measures = LayerMeasures(tiny.backbone().model, measures=["accuracy", "cka"], **PARTS)
    for epoch in range(2):
        measures.reset()
        shown(measures, batches())
        measures.write(tmp_path / "run", step=epoch * 10)
    assert [(each.epoch, each.step) for each in read_records(tmp_path / "run" / "layers.jsonl")] == [(0, 0), (1, 10)]
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    drawn = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert drawn[:2] == ["val-cka-epoch-0000.png", "val-cka-epoch-0001-step-000010.png"]
    again = LayerMeasures(tiny.backbone().model, "blocks.*")
    again.update(batches()[0])
    again.write(tmp_path / "run")  # as a script that runs again
    assert len(read_records(tmp_path / "run" / "layers.jsonl")) == 2
    (below,) = (tmp_path / "run").glob("*/layers.jsonl")
    assert [each.epoch for each in read_records(below)] == [0]


class Two(nn.Module):
    """Takes two inputs by names that no batch here has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layers(left + right)  # type: ignore[no-any-return]


NET = tiny.backbone().model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerMeasures(NET), r'Name the layers of a VisionTransformer.*, such as layers="blocks\.\*"'),
        (lambda: LayerMeasures(nn.Linear(2, 2)), "Name the layers of a Linear"),
        (lambda: LayerMeasures(NET, "bloks.*"), r"no submodule matches \"bloks\.\*\".*Did you mean blocks"),
        (lambda: LayerMeasures(NET, "blocks.*", head="haed"), "no submodule 'haed'. Did you mean head"),
        (
            lambda: LayerMeasures(NET, "blocks.*", "acuracy"),
            "no measure 'acuracy'. Did you mean accuracy.* Choose from",
        ),
        (lambda: LayerMeasures(NET, "blocks.*", [3]), "There is no measure 3. Choose from accuracy"),  # type: ignore[list-item]
        (lambda: LayerMeasures(NET, "blocks.*", "accuracy"), "LayerAccuracyMonitor reads the classifier.*head="),
        (lambda: LayerMeasures(NET, "blocks.*", [EpochSimilarity()]), "follows a Lightning Trainer's epochs"),
        (lambda: LayerMeasures(NET, "blocks.*", [SimilarityHeatmaps(layers="blocks.*")]), "has parts of its own named"),
        (lambda: LayerMeasures(NET, head="head"), "head='head': of a module whose layers are named"),
        (lambda: LayerMeasures(NET, "blocks.*").compute(), r"Nothing was measured yet: call update\(batch\) first"),
        (lambda: shown(LayerMeasures(NET, "blocks.*", ["cka", SimilarityHeatmaps()]), batches()), "measure cka"),
        (lambda: shown(LayerMeasures(NET, "blocks.*"), [batches()[0], {"image": torch.ones(2, 1, 8, 8)}]), "same keys"),
        (
            lambda: LayerMeasures(Two(), "layers.*").update({"a": torch.ones(2, 4), "b": torch.ones(2, 4)}),
            r"Two\.forward takes left, right, but the batch has a, b\. Run it yourself: with measures\.watching",
        ),
        (
            lambda: LayerMeasures(NET, measures="accuracy", **PARTS).update(torch.ones(2, 1, 8, 8)),
            "Expected the integer classes of 2 samples in each batch, but got a NoneType. Set the label",
        ),
        (
            lambda: LayerMeasures(tiny.backbone()).update({"image": torch.ones(2, 1, 8, 8)}),
            "Expected labels in each batch, for what reads the classifier, but found no classes",
        ),
        (
            lambda: LayerMeasures(NET, measures="accuracy", **PARTS).update((batches()[0]["image"], torch.arange(64))),
            r"Expected a label in 0 … 9 for each of \d+ samples, but got torch\.int64 of shape \(\d+,\), 0 … 63",
        ),
        (
            lambda: LayerMeasures(tiny.backbone(), measures="accuracy").update(
                {"image": torch.ones(2, 1, 8, 8), "label": torch.arange(3)}
            ),
            r"Expected a label in 0 … 9 for each of 2 samples, but got torch\.int64 of shape \(3,\)",
        ),
        (lambda: LayerMeasures("bert", "blocks.*"), "model: expected a torch.nn.Module, got str"),  # type: ignore[arg-type]
        (lambda: LayerMeasures(NET, "blocks.*", {}), "measures: expected one metric or more by name, got {}"),
        (lambda: LayerMeasures(NET, "blocks.*", []), "measures: expected at least one of accuracy"),
        (lambda: LayerMeasures(NET, 3), "layers: expected one or more names or patterns"),  # type: ignore[arg-type]
        (lambda: LayerMeasures(NET, "blocks.*", 3), "measures: expected names in a list, got int"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_measured_is_told(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_batch_that_is_refused_first_leaves_nothing_behind() -> None:
    batch = {"image": torch.randn(6, 1, 8, 8), "label": torch.arange(6)}
    measures = LayerMeasures(NET, measures=["accuracy", "f1"], **PARTS)
    for _ in range(2):
        with pytest.raises(UserError, match="LayerF1Monitor, f1, is for two classes"):
            measures.update(batch)
    with pytest.raises(UserError, match="Nothing was measured yet"):
        measures.compute()
    measures = LayerMeasures(NET, measures="accuracy", **PARTS)
    with pytest.raises(UserError, match="Expected the integer classes"):
        measures.update({"image": batch["image"]})
    same(shown(measures, [batch]), shown(LayerMeasures(NET, measures="accuracy", **PARTS), [batch]))


@pytest.mark.parametrize("mapping", [True, False])
def test_positions_choose_the_samples_or_are_refused(mapping: bool) -> None:
    """However they come: 8 of 40 samples are kept, which others are without positions."""
    images, position = torch.randn(40, 1, 8, 8), torch.arange(40).flip(0)
    batch: Any = {"image": images} if mapping else images

    def found(position: Any) -> Any:
        measures = LayerMeasures(NET, "blocks.*", {"rsa": RSA(max_samples=8)})
        measures.update(batch, position=position)
        return measures.compute()["rsa"].values

    expected = found(position)
    assert found(position.tolist()) == found(position.numpy()) == expected != found(None)
    for wrong in (position.float(), position[:5], position[:5].tolist()):
        with pytest.raises(UserError, match=r"index: expected \(40,\) integers, one a sample"):
            found(wrong)


def test_inference_mode_may_begin_and_end_between_batches() -> None:
    expected = shown(LayerMeasures(NET, measures=EVERY, **PARTS), batches())
    for inference in ((True, False), (False, True)):
        measures = LayerMeasures(NET, measures=EVERY, **PARTS)
        for number, batch in enumerate(batches()):
            with torch.inference_mode(inference[number % 2]):
                measures.update(batch)
        same(measures.compute(), expected)
