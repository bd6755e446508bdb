"""No input of a user ends in a traceback: what libraries refuse is one line, leaves nothing, and our bugs stay bugs."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from layersim import data
from layersim.errors import UserError
from layersim.runs.refusals import is_bug, refusing, running
from tests import tiny

Command = Callable[..., Path]

ADAMW = "--model.optimizer=AdamW"
STOP = "--trainer.callbacks+={class_path: EarlyStopping, init_args: {monitor: val/loss, %s}}"
KEEP = "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {monitor: val/loss, %s}}"
PLATEAU = "--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau"
ONE_CYCLE = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1"]

ROWS = Path(__file__).with_name("rows.tsv")

REFUSED = [
    # the parser's door
    (["--trainer.gradient_clip_val=abc"], r"--trainer\.gradient_clip_val: expected (int|float) or \w+, but got abc"),
    (["--trainer.precision=abc"], r"--trainer\.precision: .*'16-true'.* but got abc"),
    (["--trainer.max_epochs=nan"], r"--trainer\.max_epochs: expected int"),
    (["--trainer.benchmark=abc"], r"expected bool, but got abc"),
    (["--trainer.plugins=abc"], "there is no class abc"),
    (["--trainer.foo=1"], r"--trainer\.foo=1"),
    (["--trainer={a: 1}"], r"trainer\.a"),
    (["--trainer.max_steps", "--trainer.max_epochs=1"], r"--trainer\.max_steps: expected one argument"),
    (["--ckpt_path", "--trainer.max_steps=3"], r"path behind --ckpt_path, but got --trainer\.max_steps"),
    (["--ckpt_path"], "path behind --ckpt_path, but got none"),
    (["--ckpt_path=nowhere.ckpt", "--ckpt_path="], "path behind --ckpt_path, but got none"),
    (["--model.backbone.model_args={a: &a [*a]}"], "nested at most 40 deep"),
    (["--config=nowhere.yaml"], r"does not exist.*nowhere\.yaml"),
    (["--config={trainer: ["], "--config: while parsing"),
    (["--data.batch_size=null"], r"batch_size: expected int, but got null"),
    (["--data.seed=null"], "seed: expected int, but got null"),
    (["--data.batch_size=abc"], "batch_size: expected int, but got abc"),
    (["--data.val_fraction=nan"], "val_fraction: expected float"),
    ([ADAMW, "--model.optimizer.lr=null"], "lr: expected float, but got null"),
    (["--seed_everything=null"], "--seed_everything: expected bool or int, but got null"),
    (["--model.objective=Alligned"], r"no class Alligned\. Did you mean Aligned\?.*my_file\.py.*PYTHONPATH"),
    (["--model.objective=mine.Own"], r"No module named 'mine'\. .*my_file\.Own.*PYTHONPATH"),
    (["--model.head=SepparateHeads"], r"no class SepparateHeads\. Did you mean SeparateHeads"),
    (["--data=Digit"], r"Did you mean Digits"),
    (["--data=null"], r"required: fit\.data"),
    (["--model.lr_scheduler=StepLR"], "required: step_size"),
    (["--model.lr_scheduler_interval=abc"], r"expected one of \['step', 'epoch'\]"),
    (["--without=SimilarityMaps"], r"--without names SimilarityMaps.*SimilarityHeatmaps"),
    # where classes are made
    (["--model.head=Head"], "abstract class Head"),
    (["--seed_everything=-1"], "The seed cannot be set"),
    ([STOP % "mode: up"], "`mode` can be min, max, got up"),
    ([KEEP % "save_top_k: -7"], "save_top_k=-7"),
    # the trainer's door
    (["--trainer.devices=0"], r"`Trainer\(devices='0'\)` value is not a valid input"),
    (["--trainer.accelerator=inf"], "accelerator='inf'"),
    (["--trainer.strategy=abc"], "strategy='abc'"),
    (["--trainer.strategy=fsdp"], "one head cannot be read at every layer. Set .*ModelParallelStrategy"),
    (["--trainer.strategy=deepspeed"], "DeepSpeed"),
    (["--trainer.val_check_interval=2.5"], r"2\.5 for val_check_interval"),
    (["--trainer.limit_train_batches=2.5"], r"2\.5 for limit_train_batches"),
    (["--trainer.limit_val_batches=1.5"], r"1\.5 for limit_val_batches"),
    (["--trainer.overfit_batches=2.5"], r"2\.5 for overfit_batches"),
    (["--trainer.max_time=soon"], "'soon'"),
    (["--trainer.max_steps=-5"], "-5"),
    (["--trainer.profiler=abc"], "profiler"),
    (["--trainer.num_nodes=0"], "num_nodes"),
    (["--trainer.gradient_clip_algorithm=abc"], "gradient_clip_algorithm"),
    (["--trainer.accumulate_grad_batches=0"], r"at least 1, but got 0\. Change --trainer\.accumulate_grad_batches"),
    (["--trainer.check_val_every_n_epoch=0"], "--trainer.check_val_every_n_epoch"),
    (["--trainer.gradient_clip_val=-1"], "--trainer.gradient_clip_val"),
    (["--trainer.limit_val_batches=1e400"], "inf for limit_val_batches"),
    # data and model
    (["--data=StdlibCode"], "for a language model, but it is a classifier: choose other --data"),
    (["--data=Text", "--data.path={rows}", "--data.tokenizer=bytes"], "texts, but the model reads images"),
    # optimizer and schedule
    ([ADAMW, "--model.optimizer.lr=-1"], r"Invalid learning rate: -1\.0\. Change --model\.optimizer"),
    ([ADAMW, "--model.optimizer.betas=[2, 2]"], "Invalid beta parameter"),
    (["--model.lr_scheduler=CosineAnnealingLR", "--model.lr_scheduler.T_max=0"], "Change --model.lr_scheduler"),
    (["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=0"], "Change --model.lr_scheduler"),
    (ONE_CYCLE, r"moves it 23 times\. Set --model\.lr_scheduler\.total_steps=23, or change"),
    (
        ["--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/los"],
        r"ReduceLROnPlateau waits for 'val/los', .*Did you mean val/loss.*--model\.lr_scheduler\.monitor",
    ),
    (
        [
            "--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
            "--without=LayerAccuracyMonitor,ModelCheckpoint",
        ],
        r"ReduceLROnPlateau .*val/loss.*--model\.lr_scheduler\.monitor",
    ),
    # set-up, before the first batch
    ([*ONE_CYCLE, "--model.lr_scheduler.total_steps=9"], r"ends after 9 steps, but this training moves it 23 times"),
    (["--trainer.val_check_interval=1000"], r"val_check_interval` \(1000\)"),
    (["--trainer.val_check_interval=1000", "--model.lr_scheduler=WarmupDecay"], r"val_check_interval` \(1000\)"),
    (["--trainer.val_check_interval=0"], "--trainer.val_check_interval"),
    (["--trainer.limit_train_batches=0.001"], "limit_train_batches"),
    (["--model.lr_scheduler=WarmupDecay", "--model.lr_scheduler_interval=epoch"], "counts optimizer steps"),
    # what torch refuses Lightning's callback
    (["--trainer.callbacks+={class_path: EMAWeightAveraging, init_args: {device: cuda:77}}"], "Lightning refuses this"),
]


def one_line(error: str) -> str:
    """The last line on the terminal, which is all that an error says."""
    assert "Traceback" not in error
    *_, last = error.splitlines()
    assert error.count("layersim: error: ") == 1
    assert last.startswith("layersim: error: ")
    return last


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_what_a_library_refuses_is_one_line_and_leaves_nothing(
    flags: list[str], message: str, layersim: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    layersim("fit", *tiny.FLAGS, *(flag.format(rows=ROWS) if "{rows}" in flag else flag for flag in flags), status=2)
    said = one_line(capsys.readouterr().err)
    assert re.search(message, said), said
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["TensorBoardLogger", "--trainer.logger.save_dir=.", "--trainer.logger.name=" + "x" * 300],
            r"A logger cannot begin: .*File name too long.*logger",
        ),
        (["WandbLogger", "--trainer.logger.project=a/b"], r"A logger cannot begin: .*'a/b'.* Change --trainer\.logger"),
        (["Wandb", "--trainer.logger.project=a/b"], r"A logger cannot begin: .*'a/b'.* Change --trainer\.logger"),
        (["TensorBoardLogger", f"--trainer.logger.save_dir={ROWS}"], r"logger cannot begin: .*Not a directory.*logger"),
    ],
)
def test_a_logger_that_cannot_begin_is_one_line(
    flags: list[str], message: str, layersim: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    layersim("fit", *tiny.FLAGS, f"--trainer.logger={flags[0]}", *flags[1:], status=2)
    said = one_line(capsys.readouterr().err)
    assert re.search(message, said), said


@pytest.mark.filterwarnings("ignore")
def test_a_training_that_goes_on_is_refused_alike(layersim: Command, capsys: pytest.CaptureFixture[str]) -> None:
    run = layersim("fit", *tiny.FLAGS, "--trainer.limit_train_batches=2")
    capsys.readouterr()
    for flags, message in (
        (["--trainer.val_check_interval=1000"], r"val_check_interval` \(1000\)"),
        (["--trainer.logger=TensorBoardLogger", f"--trainer.logger.save_dir={ROWS}"], "A logger cannot begin: "),
    ):
        layersim("fit", *tiny.FLAGS, f"--ckpt_path={run}", "--trainer.max_epochs=2", *flags, status=2)
        assert re.search(message, one_line(capsys.readouterr().err))


@pytest.mark.parametrize("verb", ["validate", "predict", "exits"])
def test_nothing_to_measure_is_no_success(verb: str, layersim: Command, capsys: pytest.CaptureFixture[str]) -> None:
    limit = "predict" if verb == "predict" else "val"
    flags = [flag for flag in tiny.FLAGS if "max_epochs" not in flag]
    layersim(verb, *flags, f"--trainer.limit_{limit}_batches=0", status=2)
    assert f"Nothing would be measured, since trainer.limit_{limit}_batches is 0" in one_line(capsys.readouterr().err)


def test_paths_that_cannot_be_and_text_that_is_none_are_told(
    layersim: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "latin.yaml").write_bytes("experiment: größe".encode("latin-1"))
    (tmp_path / "loop").symlink_to("loop")
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(["a0: &a0 [x]", *levels]))
    long = "x" * 300
    told = {
        ("fit", "--config=latin.yaml"): "The options cannot be read: 'utf-8' codec",
        ("fit", "--resume=last", "--config=latin.yaml"): "The recipe latin.yaml cannot be read",
        ("fit", "--config=bomb.yaml"): "anchors within anchors",
        ("fit", f"--ckpt_path={long}"): "File name too long",
        ("compare", "loop"): "run: there can be no such path: Symlink loop|loop, which is no directory",
        ("compare", long): "run: there can be no such path: .*too long",
        ("similarity", f"--a={long}", "--b=timm:x"): "File name too long",
    }
    for words, message in told.items():
        layersim(*words, status=2)
        assert re.search(message, one_line(capsys.readouterr().err)), words


def test_an_optimizer_that_takes_no_step_is_told(layersim: Command, capsys: pytest.CaptureFixture[str]) -> None:
    layersim("fit", *tiny.FLAGS, ADAMW, "--model.optimizer.capturable=true", status=2)
    assert re.search("cannot take a step: If capturable=True.*--model.optimizer", one_line(capsys.readouterr().err))


def test_without_checkpoints(layersim: Command, caplog: pytest.LogCaptureFixture) -> None:
    directory = layersim("fit", *tiny.FLAGS, "--trainer.enable_checkpointing=false")
    assert (directory / "layers.jsonl").is_file()
    assert not list(directory.rglob("*.ckpt"))
    assert "No checkpoints are kept" in caplog.text


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_barebones_trains_and_leaves_nothing(
    verb: str, layersim: Command, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    flags = [flag for flag in tiny.FLAGS if "max_epochs" not in flag or verb == "fit"]
    layersim(verb, *flags, "--trainer.barebones=true", "--trainer.limit_train_batches=2")
    assert "trainer.barebones: nothing is measured" in caplog.text
    assert not list(tmp_path.iterdir())


class Broken(data.Digits):
    """Data with a bug."""

    def load(self) -> dict[str, data.splits.Split]:
        raise KeyError("a bug")


class Clumsy(Callback):
    """Somebody's callback with a bug."""

    def setup(self, trainer: Trainer, pl_module: object, stage: str) -> None:
        torch.zeros(2) @ torch.zeros(3)


@pytest.mark.parametrize(
    ("flag", "error"),
    [
        ("--data=tests.runs.test_refusals.Broken", KeyError),
        ("--trainer.callbacks+=tests.runs.test_refusals.Clumsy", RuntimeError),
    ],
)
def test_a_bug_is_no_error_of_the_users(flag: str, error: type[Exception], layersim: Command) -> None:
    with pytest.raises(error):
        layersim("fit", *tiny.FLAGS, flag)


def test_a_users_module_of_our_packages_name_is_told_to_be_renamed(
    layersim: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "callbacks.py").write_text("class Own: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    layersim("fit", *tiny.FLAGS, "--trainer.callbacks+=callbacks.Own", status=2)
    assert re.search(r"`callbacks` is layersim's own package, .*/callbacks\.py is .*rename", capsys.readouterr().err)


def test_a_library_is_told_from_what_it_calls_back() -> None:
    def called_back() -> Iterator[int]:
        yield int("a bug")

    with pytest.raises(ValueError, match="a bug") as caught, refusing("It cannot be done"):
        sorted(called_back())
    assert is_bug(caught.value)
    with pytest.raises(UserError, match=r"It cannot be done: .*no-such-program.* Change it\."):  # noqa: SIM117
        with refusing("It cannot be done", "Change it."):
            subprocess.run(["no-such-program"], check=True)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "Lower --data.batch_size"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_what_the_machine_lacks_is_told(raised: Exception, told: str) -> None:
    with pytest.raises(UserError, match=told), running(Trainer(barebones=True)):
        raise raised


def test_a_bug_within_the_loops_goes_on() -> None:
    with pytest.raises(RuntimeError, match="shapes"), running(Trainer(barebones=True)):
        raise RuntimeError("shapes")
