"""The command: what each verb leaves behind, whose word counts, and what it says to bad input."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel

from layersim import LayerwiseModule
from layersim.__main__ import main
from tests import tiny
from tests.measured import measured

Command = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed",  # a resumed run has a directory of its own
    "ignore:.*seed_everything",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one finished run of two epochs."""
    root = tmp_path_factory.mktemp("trained")
    flags = [*tiny.FLAGS, "--trainer.max_epochs=2", f"--trainer.default_root_dir={root}"]
    assert main(["fit", *flags, "--model.optimizer=AdamW", "--model.optimizer.lr=0.003"]) == 0
    (directory,) = root.glob("default/*")
    return directory


def records(directory: Path) -> list[dict]:  # type: ignore[type-arg]
    return measured(directory)


def test_a_runs_directory_holds_all_that_is_promised(trained: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {"config.yaml", "environment.json", "metrics.csv", "layers.jsonl", "checkpoints/last.ckpt"} <= names
    for figure in ("cosine", "cka", "layer_accuracy", "saturation"):
        assert {f"figures/val-{figure}-epoch-000{epoch}.png" for epoch in (0, 1)} <= names


def test_the_environment_counts_the_parameters(trained: Path) -> None:
    told = json.loads((trained / "environment.json").read_text())["parameters"]
    classifier = 16 * 10 + 10
    assert told["model"] == sum(parameter.numel() for parameter in tiny.module().parameters())
    assert told["head"] == classifier
    assert told["separate_heads"] == told["model"] + 2 * classifier
    assert told["share_saved"] == pytest.approx(2 * classifier / told["separate_heads"])


def test_records_hold_the_epochs(trained: Path) -> None:
    first, second = records(trained)
    assert [first["epoch"], second["epoch"]] == [0, 1]
    assert [first["step"], second["step"]] == [23, 46]
    assert second["samples"] == sum(second["saturation"]) == 360
    assert second["accuracy"][-1] > 0.3
    matrix = torch.tensor(second["cosine"])
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3))


def test_records_agree_with_a_direct_reading_of_the_checkpoint(trained: Path) -> None:
    module = LayerwiseModule.load_from_checkpoint(trained / "checkpoints/last.ckpt").eval()
    data = tiny.digits(eval_batch_size=360)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        output = module(batch)
    correct = (output.readout.predictions == batch["label"]).double().mean(dim=1)
    last = records(trained)[-1]
    assert last["accuracy"] == correct.tolist()
    assert last["loss"] == pytest.approx(output.readout.losses.tolist(), rel=1e-5)


def test_the_saved_configuration_runs_again_as_it_is(trained: Path, layersim: Command) -> None:
    again = layersim("fit", f"--config={trained}/config.yaml", "--trainer.default_root_dir=runs")
    assert records(again) == records(trained), "the same seed gives the same numbers"


def test_sections_from_files_are_saved_whole(trained: Path, layersim: Command, tmp_path: Path) -> None:
    recipe = yaml.safe_load((trained / "config.yaml").read_text())
    (tmp_path / "x").mkdir()
    files = {"model": tmp_path / "model.yaml", "data": tmp_path / "x/config.yaml"}
    for section, path in files.items():
        path.write_text(yaml.safe_dump(recipe[section]))
    quiet = [flag for flag in tiny.FLAGS if flag.startswith("--trainer") and "max_epochs" not in flag]
    place = "--trainer.default_root_dir=runs"
    layersim("validate", *(f"--{section}={path}" for section, path in files.items()), *quiet, place)
    (directory,) = tmp_path.glob("runs/default/*")
    saved = yaml.safe_load((directory / "config.yaml").read_text())
    assert {section: saved[section] for section in files} == {section: recipe[section] for section in files}


def test_two_runs_do_not_share_a_directory(trained: Path, layersim: Command) -> None:
    flags = ["validate", f"--config={trained}/config.yaml", "--trainer.default_root_dir=runs"]
    first, second = layersim(*flags), layersim(*flags)
    assert first != second
    assert first.parent == second.parent


def test_validate_measures_an_untrained_model(layersim: Command, capsys: pytest.CaptureFixture[str]) -> None:
    directory = layersim("validate", *[flag for flag in tiny.FLAGS if "max_epochs" not in flag])
    (record,) = records(directory)
    closing = capsys.readouterr().out
    assert f"{record['accuracy'][0]:.3f}" in closing
    assert closing.rstrip().endswith(f"{directory.name}/report.html"), "the last line tells where everything is"
    assert record["stage"] == "validate"
    assert record["samples"] == 360
    assert not list(directory.rglob("*.ckpt"))


def test_validate_needs_no_more_than_the_checkpoint(trained: Path, layersim: Command) -> None:
    directory = layersim(
        "validate", f"--ckpt_path={trained}/checkpoints/last.ckpt", "--data=Digits", "--trainer.logger=false"
    )
    assert records(directory)[-1]["accuracy"] == records(trained)[-1]["accuracy"]


def test_test_measures_the_test_split(trained: Path, layersim: Command, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["test", f"--config={trained}/config.yaml", "--trainer.default_root_dir=runs"]
    directory = layersim(*recipe, "--data.test_fraction=0.1")
    assert [records(directory)[0][key] for key in ("stage", "samples")] == ["test", 180]
    layersim(*recipe, status=2)
    assert "set --data.test_fraction" in capsys.readouterr().err
    assert len(list(Path("runs").rglob("config.yaml"))) == 1, "the refused run has left nothing behind"


def test_predict_writes_every_layers_word_on_every_sample(trained: Path, layersim: Command) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    directory = layersim(
        "predict",
        f"--config={trained}/config.yaml",
        f"--ckpt_path={checkpoint}",
        "--trainer.default_root_dir=runs",
        "--data.eval_batch_size=50",
    )
    table = pq.read_table(directory / "predictions.parquet").to_pydict()
    data = tiny.digits(eval_batch_size=360)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        readout = LayerwiseModule.load_from_checkpoint(checkpoint).eval()(batch).readout
    order = batch["index"].argsort()
    assert table["index"] == batch["index"][order].tolist()
    assert table["target"] == batch["label"][order].tolist()
    assert table["prediction"] == readout.predictions.T[order].tolist()
    torch.testing.assert_close(torch.tensor(table["confidence"]), readout.confidences.T[order])


def test_what_is_typed_beats_the_recipe_and_the_recipe_the_checkpoint(trained: Path, layersim: Command) -> None:
    recipe = Path("recipe.yaml")
    recipe.write_text("experiment: from_recipe\nmodel:\n  optimizer: {class_path: AdamW, init_args: {lr: 0.02}}\n")
    checkpoint = f"--ckpt_path={trained}/checkpoints/last.ckpt"
    common = ["fit", checkpoint, "--data=Digits", "--trainer.logger=false", "--trainer.max_epochs=3"]

    def rate(directory: Path) -> float:
        config = yaml.safe_load((directory / "config.yaml").read_text())
        saved = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
        (group,) = saved["optimizer_states"][0]["param_groups"]
        assert group["lr"] == config["model"]["optimizer"]["init_args"]["lr"], "and the optimizer really has it"
        return float(group["lr"])

    assert rate(layersim(*common)) == 0.003, "the checkpoint's, where nothing else is said"
    assert rate(layersim(*common, f"--config={recipe}")) == 0.02
    assert rate(layersim(*common, f"--config={recipe}", "--model.optimizer.init_args.lr=0.5")) == 0.5


def test_a_resumed_runs_records_tell_the_whole_training(trained: Path, layersim: Command) -> None:
    resumed = layersim(
        "fit",
        f"--config={trained}/config.yaml",
        f"--ckpt_path={trained}/checkpoints/last.ckpt",
        "--trainer.default_root_dir=runs",
        "--trainer.max_epochs=3",
    )
    assert records(resumed)[:2] == records(trained)
    assert [record["epoch"] for record in records(resumed)] == [0, 1, 2]
    straight = layersim(
        "fit", f"--config={trained}/config.yaml", "--trainer.default_root_dir=runs", "--trainer.max_epochs=3"
    )
    assert records(straight) == records(resumed), "an interruption changes no number"


def test_resuming_with_another_optimizer_or_schedule_is_refused(
    trained: Path, layersim: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = [
        "fit",
        f"--config={trained}/config.yaml",
        f"--ckpt_path={trained}/checkpoints/last.ckpt",
        "--trainer.default_root_dir=runs",
        "--trainer.max_epochs=3",
    ]
    layersim(*resume, "--model.optimizer=SGD", "--model.optimizer.lr=0.1", status=2)
    assert "trained with optimizer torch.optim.AdamW, but torch.optim.SGD is given" in capsys.readouterr().err
    layersim(*resume, "--model.lr_scheduler=layersim.optimization.schedules.WarmupDecay", status=2)
    assert "lr_scheduler" in capsys.readouterr().err


BACKBONE = "--model.backbone.init_args."


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.backbone.name=vit_tiny_patch16_225"], "Did you mean .*vit_tiny_patch16_224"),
        (["--model.objective=Aligned", "--model.objective.weights=[0.5, 0.5]"], "Expected 3 layer weights.*got 2"),
        (["--model.objective=Aligned", "--model.objective.weights=[0.5, -0.5, 1]"], "not negative"),
        (["--model.objective=Aligned", "--model.objective.weights=[0.5, 0.5, 0.5]"], "sum to one"),
        (["--model.backbone.num_classes=7"], "largest.*|num_classes 10"),
        (["--model.backbone.img_size=16"], "img_size"),
        (["--model.backbone.in_chans=3"], "in_chans"),
        (["--data=Images", "--data.path=./nowhere.parquet"], r"nowhere\.parquet"),
        (["--ckpt_path=nothing.ckpt"], "There is no checkpoint nothing.ckpt"),
        (["--experiment=../outside"], "Expected an experiment name"),
    ],
)
def test_bad_input_is_told_before_anything_is_made(
    flags: list[str], message: str, layersim: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    layersim("fit", *tiny.FLAGS, *flags, status=2)
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir()), "nothing half-written"


@pytest.mark.parametrize("flag", ["--model.lerning_rate=1", "--ckpt=null"])  # an abbreviation is not known either
def test_an_unknown_flag_is_told_without_pages_of_usage(
    flag: str, layersim: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    layersim("fit", *tiny.FLAGS, flag, status=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert flag in line


def test_checkpoints_of_another_model_are_refused(
    trained: Path, layersim: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    resume = ["validate", f"--config={trained}/config.yaml", "--trainer.default_root_dir=runs"]
    layersim(*resume, f"--ckpt_path={checkpoint}", "--model.backbone.model_args.depth=2", status=2)
    assert "blocks.2" in (error := capsys.readouterr().err)
    assert "Use the backbone and head" in error
    layersim(*resume, f"--ckpt_path={checkpoint}", "--model.backbone.num_classes=12", status=2)
    assert "10 × 16 there, 12 × 16 here" in (error := capsys.readouterr().err)
    assert "Use the number of classes" in error
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(checkpoint.read_bytes()[:5000])
    layersim(*resume, f"--ckpt_path={broken}", status=2)
    assert "not a readable checkpoint" in capsys.readouterr().err
    broken.unlink()
    torch.save({"weights": 1}, other := tmp_path / "other.ckpt")
    layersim(*resume, f"--ckpt_path={other}", status=2)
    assert "holds no state_dict" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_that_cannot_be_written(
    layersim: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    layersim("fit", *tiny.FLAGS, "--trainer.default_root_dir=file", status=2)
    assert "file is a file" in (error := capsys.readouterr().err)
    assert "--trainer.default_root_dir" in error
    (tmp_path / "loop").symlink_to("loop")
    layersim("fit", *tiny.FLAGS, "--trainer.default_root_dir=loop", status=2)
    assert "loop is a link that leads nowhere" in capsys.readouterr().err


def test_help_and_version_import_nothing_heavy() -> None:
    """Nor does a verb's, wherever no class of the user's is asked about."""
    told = {"--help": "compare", "--version": "layersim 0."}
    quick = ("similarity", "claims", "sweep", "transfer", "lens", "compare", "report", "runs", "dashboard", "families")
    told |= {f"{verb} --help": f"usage: layersim {verb}" for verb in quick}
    program = f"""
import sys
from layersim.__main__ import main
for line in {list(told)}:
    try:
        main(line.split())
    except SystemExit as end:
        assert not end.code
    heavy = {{'torch', 'lightning', 'numpy', 'timm', 'transformers', 'wandb', 'matplotlib'}} & set(sys.modules)
    assert not heavy, (line, heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for text in told.values():
        assert text in done.stdout


def test_both_commands_are_the_same() -> None:
    script = shutil.which("layersim", path=str(Path(sys.executable).parent))
    assert script is not None
    by_script = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    by_module = subprocess.run(
        [sys.executable, "-m", "layersim", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert by_script == by_module


def test_an_unknown_verb_is_told(layersim: Command, capsys: pytest.CaptureFixture[str]) -> None:
    layersim("train", status=2)
    assert "There is no verb 'train'" in capsys.readouterr().err


def test_compare_sets_runs_side_by_side(
    trained: Path, layersim: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    layersim("compare", str(trained))
    assert f"{records(trained)[-1]['accuracy'][-1]:.3f}" in capsys.readouterr().out
    assert (tmp_path / "comparison.png").stat().st_size > 1000


def test_the_last_checkpoint_is_of_the_last_epoch_though_an_earlier_one_was_best(layersim: Callable[..., Path]) -> None:
    standstill = ["--model.optimizer=SGD", "--model.optimizer.lr=0", "--trainer.limit_train_batches=1"]
    directory = layersim("fit", *tiny.FLAGS, "--trainer.max_epochs=3", *standstill)
    last = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    assert (directory / "checkpoints/000.ckpt").is_file() or (directory / "checkpoints/epoch=000.ckpt").is_file()


def classes(directory: Path) -> int:
    recipe = yaml.safe_load((directory / "config.yaml").read_text())
    return int(recipe["model"]["backbone"]["init_args"]["num_classes"])


def test_a_new_head_takes_its_classes_from_the_data(layersim: Command, caplog: pytest.LogCaptureFixture) -> None:
    open_ended = [flag for flag in tiny.FLAGS if "num_classes" not in flag]
    directory = layersim("fit", *open_ended, "--trainer.limit_train_batches=2")
    assert classes(directory) == 10
    assert "tells the data's 10 classes apart" in caplog.text
    checkpoint = directory / "checkpoints/last.ckpt"
    assert LayerwiseModule.load_from_checkpoint(checkpoint).backbone.num_classes == 10
    assert records(layersim("fit", *tiny.FLAGS, "--trainer.limit_train_batches=2")) == records(directory), (
        "typed or not, the same model is drawn"
    )
    caplog.clear()
    layersim("validate", f"--ckpt_path={checkpoint}", "--trainer.logger=false")
    assert "classes apart" not in caplog.text


def test_a_head_of_other_classes_than_the_datas_is_told(layersim: Command, caplog: pytest.LogCaptureFixture) -> None:
    flags = [flag for flag in tiny.FLAGS if "max_epochs" not in flag]
    layersim("validate", *flags, "--model.backbone.num_classes=12")
    assert "The head tells 12 classes apart, but the data has 10" in caplog.text


def test_several_validations_an_epoch_keep_each_figure_and_record(layersim: Command) -> None:
    flags = ["--trainer.limit_train_batches=8", "--trainer.val_check_interval=0.25"]
    directory = layersim("fit", *tiny.FLAGS, *flags)
    assert [(record["epoch"], record["step"]) for record in records(directory)] == [(0, 2), (0, 4), (0, 6), (0, 8)]
    figures = {path.name for path in directory.glob("figures/val-cosine-*.png")}
    assert figures == {f"val-cosine-epoch-0000-step-00000{step}.png" for step in (2, 4, 6, 8)}


BERT = {"model_type": "bert", "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2}


def test_a_checkpoint_brings_the_classifier_that_the_pretrained_model_lacks(layersim: Command, tmp_path: Path) -> None:
    """No warning, which would be an error here, where the checkpoint's head is read; one where there is none."""
    config = AutoConfig.for_model(**BERT, num_attention_heads=2, intermediate_size=16)
    AutoModel.from_config(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "a good film\t1\na bad film\t0\n" * 30)
    data = ["--data=Text", "--data.path=rows.tsv", "--data.tokenizer=bytes", "--trainer.logger=false"]
    model = ["--model.backbone=TransformersBackbone", "--model.backbone.task=classification"]
    model += ["--model.backbone.num_classes=2", f"--model.backbone.name_or_path={tmp_path}/bert"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    with pytest.warns(UserWarning, match="has no trained classifier"):
        directory = layersim("fit", *data, *model, *quiet, "--trainer.max_epochs=1")
    checkpoint = f"--ckpt_path={directory}/checkpoints/last.ckpt"
    layersim("validate", *data, *quiet, checkpoint)
    layersim("fit", *data, *model, *quiet, checkpoint, "--trainer.max_epochs=2")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_letters_gets_a_question_mark(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    kept = tmp_path / "said"
    with kept.open("w", encoding=encoding) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        flags = [*tiny.FLAGS, "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path / 'runs'}"]
        assert main(["fit", *flags]) == 0
        assert main(["exits", "--ckpt_path", str(trained), "--risk=0.5"]) == 0
        assert main(["compare", str(trained), "--output", str(tmp_path / "compared.png")]) == 0
        assert main(["runs", str(trained.parent)]) == 0
    said = kept.read_text(encoding=encoding)
    assert "effective depth" in said
    assert "?" in said
