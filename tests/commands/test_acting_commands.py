"""`layersim exits` and `layersim export` on a small model trained on the digits."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from layersim.__main__ import main
from layersim.exits import Alarm, Reference
from layersim.metrics import effective_depth
from layersim.report.records import read_records
from tests import tiny
from tests.processes import PATIENCE, run_command

NO_STEPS = [flag for flag in tiny.FLAGS if "max_epochs" not in flag]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight epochs of the aligned loss."""
    root = tmp_path_factory.mktemp("trained")
    common = ["--trainer.max_epochs=8", "--model.optimizer=AdamW", "--model.optimizer.lr=0.003"]
    assert main(["fit", *NO_STEPS, *common, f"--trainer.default_root_dir={root}", "--data.val_fraction=0.4"]) == 0
    (path,) = root.rglob("last.ckpt")
    return path


def exits(layersim: Callable[..., Path], checkpoint: Path, *flags: str, status: int = 0) -> dict:  # type: ignore[type-arg]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    directory = layersim("exits", f"--ckpt_path={checkpoint}", *quiet, *flags, status=status)
    return json.loads((directory / "exits.json").read_text()) if status == 0 else {}


def test_a_checkpoint_alone_is_enough(
    layersim: Callable[..., Path], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = exits(layersim, checkpoint, "--risk=0.05", "--confidence=0.9")
    told = " ".join(capsys.readouterr().out.split())
    assert found["samples"] == 719
    assert sum(found["exits"]) == 719
    mean = sum(layer * count for layer, count in enumerate(found["exits"], start=1)) / 719
    assert found["mean_exit_layer"] == pytest.approx(mean)
    assert 1 < found["mean_exit_layer"] < 3
    assert found["full_accuracy"] - found["accuracy"] == pytest.approx(found["promise"]["observed_risk"])
    assert found["promise"]["bound"] <= 0.05
    assert "With probability 0.9 over the draw of these n = 719 samples" in told
    assert [point["layer_gain"] for point in found["speed"]] == pytest.approx(
        [3 / point["mean_exit_layer"] for point in found["speed"]]
    )
    assert all(point["wall_gain"] > 0 for point in found["speed"])
    classifier = 16 * 10 + 10
    assert found["parameters"]["share_saved"] == pytest.approx(
        2 * classifier / (found["parameters"]["model"] + 2 * classifier)
    )


def test_temperatures_are_fitted_on_other_samples(layersim: Callable[..., Path], checkpoint: Path) -> None:
    found = exits(
        layersim, checkpoint, "--risk=0.05", "--temperature_share=0.3", "--measure_speed=false", "--policy=margin"
    )
    assert found["samples"] == 719 - round(0.3 * 719)
    assert len(found["temperatures"]) == 3
    assert found["speed"] == []
    before, after = found["calibration"]["before"], found["calibration"]["after"]
    assert sum(after["brier"]) < sum(before["brier"])  # what temperatures are for, on samples that they have not seen
    assert sum(map(abs, after["overconfidence"])) < sum(map(abs, before["overconfidence"]))


def test_several_risks_are_promised_together(
    layersim: Callable[..., Path], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = exits(layersim, checkpoint, "--risk=0.05,0.1,0.3", "--measure_speed=false")
    told = " ".join(capsys.readouterr().out.split())
    choices = found["choices"]
    assert [one["target"] for one in choices] == [0.05, 0.1, 0.3]
    assert all(one["bound"] <= one["target"] for one in choices)
    gains = [one["layer_gain"] for one in choices]
    assert gains == sorted(gains)
    assert gains[0] < gains[-1]
    assert (found["threshold"], found["promise"]["target"]) == (choices[0]["threshold"], 0.05)
    assert "Promised together" in told
    assert "and for ≤ 0.1, ≤ 0.3" in told
    for one in choices:
        reference = Reference(**one["reference"])
        assert reference.samples == 719
        assert Alarm(reference=reference).least_samples < 30


def test_new_data_weigh_the_samples(
    layersim: Callable[..., Path], checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The samples themselves as new data: nothing has shifted, and labels are not looked at."""
    flags = ["--risk=0.1", "--temperature_share=0.3", "--measure_speed=false"]
    found = exits(
        layersim,
        checkpoint,
        *flags,
        "--shifted_data=Digits",
        "--shifted_data.val_fraction=0.4",
        "--risk_of=disagreement",
    )
    assert found["shift"]["new_samples"] == 719
    assert found["samples"] == 503 >= found["shift"]["effective_samples"] > 450
    assert 0.4 < found["shift"]["told_apart"] < 0.6
    assert found["promise"]["bound"] <= 0.1
    assert "Comparing them with the 719 new samples of the val split." in [one.message for one in caplog.records]


def test_exits_tell_what_they_are_at(
    layersim: Callable[..., Path], checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exits(layersim, checkpoint, "--risk=0.05", "--temperature_share=0.3")
    phases = ["Measuring every layer on the 719", "Fitting a temperature", "Choosing a threshold", "Timing the model"]
    told = [record.message for record in caplog.records]
    places = [next(at for at, line in enumerate(told) if line.startswith(phase)) for phase in phases]
    assert places == sorted(places)


def test_a_budget_instead_of_a_promise(layersim: Callable[..., Path], checkpoint: Path) -> None:
    found = exits(layersim, checkpoint, "--budget=0.5", "--measure_speed=false")
    assert found["promise"] is None
    assert found["mean_exit_layer"] <= 1.5


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--risk=0.0001", "samples to promise a risk"),
        ("--split=test", "Set --data.test_fraction"),
        ("--temperature_share=1.5", "share at least 0 and below 1"),
        ("--temperature_share=1", "Expected --temperature_share at least 0 and below 1, but got 1"),
        ("--risk=1.5", "Expected --risk above 0 and below 1, but got 1.5"),
        ("--confidence=1", "Expected --confidence above 0 and below 1, but got 1"),
        ("--budget=0", "Expected --budget above 0 and at most 1, but got 0"),
        ("--budget=2", "Expected --budget above 0 and at most 1, but got 2"),
        ("--temperature_share=0.95", "samples to promise a risk"),
        ("--risk=0.1,0.05", "Expected risk targets, each above the one before, but got 0.1, 0.05"),
        ("--risk=0.05,0.05", "each above the one before"),
        ("--risk=[]", "each above the one before, but got none"),
        ("--risk=few", "--risk takes numbers: could not convert string to float: 'few'"),
        ("--risk=0.005,0.1", "for 2 targets together"),
        ("--budget=0.5 --shifted_data=Digits", "Leave --shifted_data or --budget out"),
        ("--shifted_data=Digits --shifted_data.val_fraction=2", "Change --data.val_fraction"),
        ("--shifted_data=Images --shifted_data.path=/none", "folder /none: change --shifted_data.path"),
        ("--budget=0.5 --plan --risk_of=disagreement", "A budget promises nothing: --risk_of says nothing beside it"),
        ("--plan --trainer.devices=2", "A plan is made by one process alone. Set --trainer.devices=1"),
    ],
)
def test_what_cannot_be_promised_is_refused(
    layersim: Callable[..., Path],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    message: str,
) -> None:
    """Before anything is measured, in one line."""
    exits(layersim, checkpoint, *flag.split(), status=2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("layersim: error:") == 1
    assert not list(tmp_path.iterdir()), "no run directory"


def test_a_plan_tells_which_way_is_fastest_and_what_was_measured(
    layersim: Callable[..., Path], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = exits(layersim, checkpoint, "--risk=0.2", "--confidence=0.9", "--plan", "--policy=margin")
    plan = found["plan"]
    assert plan["asked"] == pytest.approx(found["full_accuracy"] - 0.2)
    assert plan["sizes"] == [1, 2, 4, 8, 16, 32, 64]
    ways = {way["name"]: way for way in plan["ways"]}
    assert {"all layers", "exits"} <= ways.keys() <= {"all layers", "exits", "truncation", "removal"}
    assert all(way["accuracy"] >= plan["asked"] for way in ways.values())
    assert all(len(way["seconds"]) == 7 and min(way["seconds"]) > 0 for way in ways.values())
    assert ways["all layers"]["layers"] == 3
    assert ways["exits"]["threshold"] <= found["threshold"]
    assert plan["predicted"] > 0
    assert plan["measured"] > 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Exits at {plan['asked']:.3f} (margin ≥ {ways['exits']['threshold']:.4g}, without a promise) pay" in said
    assert "ms were predicted" in said
    exits(layersim, checkpoint, "--risk=0.05", "--plan", "--measure_speed=false", status=2)
    assert "A plan is made of measured times" in capsys.readouterr().err


def test_two_processes_find_what_one_finds(checkpoint: Path, tmp_path: Path) -> None:
    flags = [f"--ckpt_path={checkpoint}", "--risk=0.05", "--measure_speed=false", "--temperature_share=0.2"]
    flags += ["--trainer.logger=false", "--data=Digits", "--data.val_fraction=0.4", "--data.eval_batch_size=50"]
    one, two = (
        json.loads((run_command("exits", processes, tmp_path, *flags) / "exits.json").read_text())
        for processes in (1, 2)
    )
    assert two["exits"] == one["exits"]
    assert two["temperatures"] == pytest.approx(one["temperatures"], rel=1e-6)
    assert two["threshold"] == one["threshold"]
    for when, told in one["calibration"].items():
        for name, values in told.items():
            assert two["calibration"][when][name] == pytest.approx(values, rel=1e-6, abs=1e-6)
    assert two["curve"] == one["curve"]


def readout(checkpoint: Path, image: torch.Tensor, layer: int) -> torch.Tensor:
    module = tiny.module()
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    module.eval()
    with torch.no_grad():
        features = module.backbone({"image": image}).values
        return module.head.logits(features[layer - 1 : layer], [layer - 1])[0]


LOAD = """
import json, sys, timm, torch
from pathlib import Path
folder = Path(sys.argv[1])
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
assert not [name for name in sys.modules if name.startswith("layersim")]
"""


@pytest.mark.parametrize(("flags", "layers"), [(["--layers=2"], 2), (["--tolerance=1.0"], 1), ([], 3)])
def test_an_export_is_the_readout_of_its_depth(
    layersim: Callable[..., Path], checkpoint: Path, tmp_path: Path, flags: list[str], layers: int
) -> None:
    layersim("export", f"--ckpt_path={checkpoint}", "--to=cut", *flags, "--trainer.enable_progress_bar=false")
    assert [path.name for path in tmp_path.iterdir()] == ["cut"], "no run directory, and nothing else"
    image = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(image, tmp_path / "image.pt")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "cut"), str(tmp_path / "image.pt"), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True, timeout=PATIENCE)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), readout(checkpoint, image, layers), rtol=0, atol=1e-5)


@pytest.mark.parametrize("flag", ["--layers=3", "--tolerance=0.0"])
def test_the_checkpoints_class_names_come_along(
    layersim: Callable[..., Path], checkpoint: Path, tmp_path: Path, flag: str
) -> None:
    """Whether or not the data were loaded."""
    layersim("export", f"--ckpt_path={checkpoint}", "--to=cut", flag, "--trainer.enable_progress_bar=false")
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["label_names"] == list("0123456789")


def test_a_model_of_more_classes_than_its_data_is_exported_without_names(
    layersim: Callable[..., Path], tmp_path: Path
) -> None:
    flags = ["--model.backbone.num_classes=12", "--to=cut", "--tolerance=1.0"]
    layersim("export", *NO_STEPS, *flags)
    assert "label_names" not in json.loads((tmp_path / "cut" / "config.json").read_text())


def test_a_tolerance_keeps_the_effective_depth_that_the_table_tells(
    layersim: Callable[..., Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the same ε they are one number, whichever layer is the best."""
    quiet = "--trainer.enable_progress_bar=false"
    run = layersim("validate", f"--ckpt_path={checkpoint}", quiet)
    (record,) = read_records(run / "layers.jsonl")
    assert record.quantities["effective_depth"].options == {"epsilon": 0.01}
    for tolerance in (0.01, 0.2):
        depth = effective_depth(record.values("accuracy"), tolerance)
        assert tolerance != 0.01 or depth == record.values("effective_depth")
        capsys.readouterr()
        layersim("export", f"--ckpt_path={checkpoint}", f"--to=cut{tolerance}", f"--tolerance={tolerance}", quiet)
        said = " ".join(capsys.readouterr().out.split())
        assert f"Exported {depth} of 3 layers, the fewest within {tolerance} of the best layer's accuracy" in said
        written = json.loads((tmp_path / f"cut{tolerance}" / "layersim.json").read_text())
        assert len(written["layers"]) == depth


def test_a_tolerance_that_is_no_share_is_refused_before_anything_is_read(
    layersim: Callable[..., Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layersim("export", f"--ckpt_path={checkpoint}", "--to=cut", "--tolerance=-0.1", status=2)
    assert "Expected --tolerance at least 0 and at most 1, but got -0.1" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "cut").exists()


def test_removing_a_block_says_what_it_costs(
    layersim: Callable[..., Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layersim("export", f"--ckpt_path={checkpoint}", "--to=cut", "--remove=1", "--trainer.enable_progress_bar=false")
    assert json.loads((tmp_path / "cut" / "layersim.json").read_text())["layers"] in ([1, 2], [1, 3])
    assert [path.name for path in tmp_path.iterdir()] == ["cut"], "no run directory, and nothing else"
    said = " ".join(capsys.readouterr().out.split())
    assert "on 719 samples: loss" in said
    assert "linear map" not in said
    layersim("export", f"--ckpt_path={checkpoint}", "--to=stands", "--remove=1", "--replace=linear")
    assert re.search(r"With a linear map in their place: loss \d", " ".join(capsys.readouterr().out.split()))
    assert "carries a linear map" in json.loads((tmp_path / "stands/layersim.json").read_text())["folded"]
    for option in ("--replace=linear", "--criterion=influence", "--removal_batches=7"):
        layersim("export", f"--ckpt_path={checkpoint}", "--to=other", option, status=2)
        assert "--removal_batches are of --remove. Set it, or leave" in capsys.readouterr().err


def test_exits_go_into_the_file_that_onnxruntime_reads(
    layersim: Callable[..., Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    found = exits(layersim, checkpoint, "--risk=0.05", "--measure_speed=false")
    (written,) = tmp_path.rglob("exits.json")
    given = ["export", f"--ckpt_path={checkpoint}", "--format=onnx", f"--exits={written}"]
    layersim(*given, "--to=served")
    image = torch.randn(3, 1, 8, 8).numpy()
    _, layers = onnxruntime.InferenceSession(tmp_path / "served/model.onnx").run(None, {"image": image})
    assert all(1 <= layer <= 3 for layer in layers)
    assert json.loads((tmp_path / "served/layersim.json").read_text())["exits"]["threshold"] == found["threshold"]
    capsys.readouterr()
    layersim(*given, "--to=no", "--layers=2", status=2)
    layersim(*given[:2], f"--exits={written}", "--to=no", "--format=torch", status=2)
    assert capsys.readouterr().err.count("Set --format=onnx or stock, and leave --layers,") == 2
    for changes, message in (
        ({"weights": "0" * 16}, "chosen for a model with other weights"),
        ({"precision": "bf16-mixed"}, "chosen in bf16-mixed"),
        ({"threshold": None}, "lets no sample leave early"),
    ):
        written.write_text(json.dumps(found | changes))
        layersim(*given, "--to=no", status=2)
        assert message in " ".join(capsys.readouterr().err.split())
    written.unlink()
    layersim(*given, "--to=no", status=2)
    assert "There is no exits.json at" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()


def test_an_export_that_stands_is_kept(
    layersim: Callable[..., Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "mine.txt").write_text("mine")
    layersim("export", f"--ckpt_path={checkpoint}", "--to=cut", "--layers=2", "--overwrite=true", status=2)
    assert (tmp_path / "cut" / "mine.txt").read_text() == "mine"
    layersim("export", f"--ckpt_path={checkpoint}", "--to=other", "--layers=4", status=2)
    assert "1 … 3" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_heads_that_the_checkpoint_lacks_are_named(
    layersim: Callable[..., Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layersim("export", f"--ckpt_path={checkpoint}", "--to=cut", "--model.head=SeparateHeads", status=2)
    assert "head.classifiers.0.weight is missing" in capsys.readouterr().err
    assert not (tmp_path / "cut").exists()


def test_samples_that_were_trained_on_promise_nothing(
    layersim: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "a good film\t1\na bad film\t0\n" * 30)
    bert = {"model_type": "bert", "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2}
    bert |= {"num_attention_heads": 2, "intermediate_size": 16}
    layersim(
        "exits",
        "--data=Text",
        "--data.path=rows.tsv",
        "--data.tokenizer=bytes",
        "--data.val_split=train",
        "--model.backbone=TransformersBackbone",
        "--model.backbone.task=classification",
        "--model.backbone.pretrained=false",
        "--model.backbone.num_classes=2",
        f"--model.backbone.config_args={json.dumps(bert)}",
        "--trainer.logger=false",
        status=2,
    )
    assert "60 of the 60 samples of the val split were trained on" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
