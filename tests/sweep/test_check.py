"""Sweep files: each flag and value is tried before the first trial."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from layersim.__main__ import main
from layersim.commands.sweep_check import Options
from layersim.commands.sweep_check import check_sweep as check
from layersim.errors import UserError
from layersim.sweep.engine import Engine
from layersim.sweep.file import DISTRIBUTIONS, broken_rule, read
from layersim.sweep.flags import from_agent, whole_flag

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "experiments/vision/digits/aligned.yaml"


def write(folder: Path, swept: dict[str, Any], **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    sweep = {
        "method": "grid",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": swept,
        "command": ["${program}", "fit", "--config", str(RECIPE), "${args}"],
    }
    path.write_text(yaml.safe_dump(sweep | changes))
    return path


def test_what_an_agent_prints_is_said_in_the_options_words() -> None:
    printed = [
        "fit",
        "--a.b=None",
        "--c=16.0",
        "--d=1e-05",
        "--e=True",
        "--f=[None, 0.5]",
        "--g=linear",
        "--h=16",
        "--i",
    ]
    said = ["fit", "--a.b=null", "--c=16", "--d=1e-05", "--e=true", "--f=[null, 0.5]", "--g=linear", "--h=16", "--i"]
    assert from_agent(printed) == said


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_passes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = read(path)
    assert check(file)["experiment"] == "digits/aligned"
    assert file.metric in ("val/accuracy", "val/accuracy/layer_03")
    assert path.name in path.read_text().partition("\nname:")[0], "its header tells the command"


def test_recipes_may_be_swept(tmp_path: Path) -> None:
    objectives = [str(ROOT / f"experiments/paper/objectives/{name}.yaml") for name in ("standard", "uniform")]
    parameters = {
        "model.objective.class_path": {"values": ["layersim.objectives.Alternating"]},
        "config": {"values": objectives},
    }
    file = read(write(tmp_path, parameters))
    check(file)
    words = file.command({"model.objective.class_path": "layersim.objectives.Alternating", "config": objectives[1]})
    assert words[-2:] == [
        f"--config={objectives[1]}",
        "--model.objective.class_path=layersim.objectives.Alternating",
    ], "a recipe that came later would undo what the trial sets"
    set_by = Options(file)
    assert set_by.parse({"config": objectives[1]})["model.objective.init_args.weights"] == "uniform"
    assert set_by.parse({"config": objectives[0]})["model.objective.class_path"] == "layersim.objectives.LastLayer"
    with pytest.raises(UserError, match=r"missing\.yaml"):
        check(read(write(tmp_path, {"config": {"values": [objectives[0], str(tmp_path / "missing.yaml")]}})))


def test_a_swept_recipe_stands_before_the_trials_other_flags() -> None:
    """As W&B's server orders them: by name."""
    printed = ["fit", "--config", "base.yaml", "--a=1", "--config=swept.yaml", "--model.b=2", "--c", "--d=3"]
    expected = ["fit", "--config", "base.yaml", "--config=swept.yaml", "--a=1", "--model.b=2", "--c", "--d=3"]
    assert from_agent(printed) == expected


def test_a_recipe_that_is_swept_may_be_the_only_one(tmp_path: Path) -> None:
    """What it requires and what it alone knows is there."""
    swept = {"config": {"values": [str(RECIPE)]}, "model.objective.init_args.weights": {"values": ["linear"]}}
    found = check(read(write(tmp_path, swept, command=["${program}", "fit", "${args}"])))
    assert found["experiment"] == "digits/aligned"


@pytest.mark.parametrize("is_swept", [False, True])
def test_a_checkpoint_tells_its_model_and_data(is_swept: bool, tmp_path: Path) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    checkpoint = tmp_path / "last.ckpt"
    config = {"data": recipe["data"], "experiment": "its/own"}
    torch.save({"state_dict": {}, "hyper_parameters": recipe["model"], "layersim": {"config": config}}, checkpoint)
    swept = {"data.init_args.eval_batch_size": {"values": [8, 16]}}
    command = ["${program}", "validate", f"--ckpt_path={checkpoint}", "${args}"]
    if is_swept:
        swept |= {"ckpt_path": {"values": [str(checkpoint)]}}
        del command[2]
    assert check(read(write(tmp_path, swept, command=command)))["experiment"] == "its/own"


@pytest.mark.parametrize("name", ["my sweep.yaml", "lr=0.1.yaml"])
def test_a_name_that_no_run_may_have_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"model.optimizer.init_args.lr": {"values": [0.1]}}).rename(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: runs of a sweep .* Rename the file"):
        read(path)


def test_none_true_and_whole_floats_are_taken(tmp_path: Path) -> None:
    parameters = {
        "data.init_args.eval_batch_size": {"values": [None, 16.0]},
        "data.init_args.batch_size": {"distribution": "q_uniform", "min": 16.0, "max": 64.0, "q": 16.0},
        "model.compile": {"values": [True, False]},
        "model.parameter_groups.layer_decay": {"distribution": "uniform", "min": 0.5, "max": 1.0},
        "model.parameter_groups.head_lr": {"values": [None, 0.01]},
        "model.objective.init_args.weights": {"values": ["linear", [0.0, 0, 0, 0, 0.5, 0.5]]},
        "model.backbone.init_args.model_args.drop_rate": {"values": [0.0, 0.1]},
        "model.optimizer.init_args.lr": {"distribution": "log_uniform_values", "min": 1e-05, "max": 1},
    }
    assert check(read(write(tmp_path, parameters)))["data.init_args.batch_size"] == 64


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("model.optmizer.init_args.lr", [0.1], "Did you mean model.optimizer.init_args.lr"),
        ("model.optimizer.init_args.lrr", [0.1], "Did you mean model.optimizer.init_args.lr"),
        ("model.optimizer.lrr", [0.1], "Did you mean model.optimizer.init_args.lr"),
        ("model.optimizer.lr", [0.1, "much"], "model.optimizer.lr=much` is refused"),
        ("trainer.max_epoch", [3], "Did you mean trainer.max_epochs"),
        ("ckpt", [None], "Did you mean ckpt_path"),
        ("model.objective", ["LastLayer", "LatsLayer"], "LatsLayer"),
        ("model.parameter_groups.layer_decy", [0.5], "Did you mean model.parameter_groups.layer_decay"),
        ("zzz", [1], "layersim fit --help"),
        ("data.init_args.batch_size", [16, 16.5], "batch_size=16.5` is refused"),
        ("model.objective.class_path", ["layersim.objectives.LastLayer", "layersim.Nothing"], "layersim.Nothing"),
    ],
)
def test_a_wrong_flag_or_value_is_told_before_any_trial(
    name: str, values: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, {name: {"values": values}})
    assert main(["sweep", str(file), "--check"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == [file], "nothing is made"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gird"}, "expected method grid, random, bayes, but got 'gird'"),
        ({"metric": {"goal": "maximize"}}, "expected `metric:"),
        ({"parameters": {}}, "expected a mapping"),
        ({"parameters": {"model": {"parameters": {"lr": {"value": 1}}}}}, "whole flag"),
        (
            {"metric": {"name": "val/accuracy", "goal": "maximise"}},
            "expected goal maximize or minimize, but got 'maxim",
        ),
        ({"parameters": {1: {"values": [1, 2]}}}, "sweep.yaml: expected text, got 1"),
        (
            {"metric": {"name": "val/accuracy", "target": "1e-3"}},
            "expected a number as the metric's target, but got '1e-3'",
        ),
        ({"run_cap": 0}, "expected run_cap 1 or more, the trials of the sweep, but got 0"),
        ({"command": ["${program}", "${args}"]}, "verb one of fit, validate, test"),
        ({"command": ["${program}", "fit", "${args}", "--config", "x.yaml"]}, "Put it before"),
    ],
)
def test_a_file_that_is_no_sweep_of_ours_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"model.optimizer.init_args.lr": {"values": [0.1]}}, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"distribution": "log_uniform", "min": 1e-5, "max": 0.1}, "write log_uniform_values"),
        ({"distribution": "q_log_uniform", "min": 1, "max": 9, "q": 1}, "write q_log_uniform_values"),
        ({"distribution": "unifrom", "min": 1, "max": 2}, "Did you mean uniform"),
        ({"distribution": "log_uniform_values", "min": "1e-5", "max": 0.1}, "min is the text '1e-5', not a number"),
        ({"distribution": "q_uniform", "min": 1, "q": 2}, "takes max, min, q (optional), but got min, q"),
        ({"min": 1}, "uniform takes max, min, but got min"),
        ({"min": True, "max": 3}, "min is a number, but got True"),
        ({"min": 1.0, "max": math.inf}, "max is a number, but got inf"),
        ({}, "uniform takes max, min, but got nothing"),
        ({"distribution": ["uniform"], "min": 1, "max": 2}, "there is no distribution ['uniform']"),
        ({"values": []}, "a list of one or more, but got []"),
        ({"values": 3}, "a list of one or more, but got 3"),
        ({"values": [1], "vaules": [2]}, "categorical takes values, but got values, vaules"),
        ({"values": [1], "value": 2}, "categorical takes values, but got value, values"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5], "distribution": "categorical"}, "categorical takes values"),
    ],
)
def test_a_parameter_that_breaks_the_engines_rules_is_told_by_name(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(f"a.b: {message}") + "|a\\.b: .*" + re.escape(message)) as found:
        read(write(tmp_path, {"a.b": entry}))
    assert "\n" not in str(found.value)


def test_every_distribution_that_is_let_through_is_the_engines(tmp_path: Path) -> None:
    pytest.importorskip("sweeps", reason="the extra `sweep` is not installed")
    numbers = {"min": 1, "max": 9, "a": 1, "b": 2, "value": 1, "values": [1, 2], "probabilities": [0.5, 0.5]}
    for name, (needed, allowed) in DISTRIBUTIONS.items():
        for optional in (set(), allowed):
            entry = {key: numbers.get(key, 1.0) for key in needed | optional} | {"distribution": name}
            assert broken_rule(entry) is None
            Engine({"method": "random", "metric": {"name": "m"}, "parameters": {"x": entry}}).rehearse()


LR = "model.optimizer.init_args.lr"


@pytest.mark.parametrize(
    ("swept", "changes"),
    [
        ({LR: {"min": 0.1, "max": 0.01}}, {"method": "random"}),
        ({LR: {"values": [0.1, 0.2], "probabilities": [0.5, 0.6]}}, {"method": "random"}),
        ({LR: {"min": 0.1, "max": 1.0}}, {}),
        ({LR: {"distribution": "normal", "mu": 0.1, "sigma": -1}}, {"method": "random"}),
        ({LR: {"distribution": "q_uniform", "min": 0.1, "max": 1, "q": 0}}, {"method": "random"}),
        ({LR: {"value": 0.1}}, {"method": "bayes"}),
        ({LR: {"values": [0.1, 0.2], "probabilities": [0.5, 0.5]}}, {"method": "bayes"}),
        ({LR: {"values": [0.1]}}, {"early_terminate": {"type": "hyperbnd", "min_iter": 1}}),
        ({LR: {"values": [0.1]}}, {"early_terminate": {"type": "hyperband"}}),
        ({LR: {"values": [0.1]}}, {"early_terminate": {"type": "hyperband", "max_iter": 9, "s": 1.5}}),
        ({LR: {"values": [0.1]}}, {"early_terminate": {"type": "hyperband", "max_iter": 9, "s": 0}}),
        ({LR: {"values": [0.1]}}, {"early_terminate": "hyperband"}),
        ({LR: {"values": [0.1]}}, {"parametrs": {}}),
        ({LR: {"values": [0.1]}}, {"metric": {"name": "val/accuracy", "gaol": "maximize"}}),
    ],
)
def test_what_the_engine_refuses_is_refused_before_any_trial(
    swept: dict[str, Any], changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sweeps", reason="the extra `sweep` is not installed")
    file = write(tmp_path, swept, **changes)
    said = []
    for flags in (["--check"], ["--count", "1"]):
        assert main(["sweep", str(file), *flags]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert "W&B's engine refuses the sweep: " in said[0]
    assert said[0].count("\n") == 1
    assert list(tmp_path.iterdir()) == [file], "nothing is made"


def test_a_run_cap_is_ours_and_not_the_engines(tmp_path: Path) -> None:
    pytest.importorskip("sweeps", reason="the extra `sweep` is not installed")
    assert main(["sweep", str(write(tmp_path, {LR: {"values": [0.1]}}, run_cap=1)), "--check"]) == 0


@pytest.mark.parametrize("text", ["[" * 3000, "a: {values: [1], 3: 4}", "a: &a [*a]", "method: grid: x", "\0"])
def test_what_is_no_yaml_of_ours_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.yaml: expected"):
        read(tmp_path / "sweep.yaml")


def test_a_date_is_refused_unless_it_is_in_quotes(tmp_path: Path) -> None:
    file = write(tmp_path, {"data.tokenizer": {"values": ["2024-01-01"]}})
    assert read(file).parameters["data.tokenizer"]["values"] == ["2024-01-01"]
    file.write_text(file.read_text().replace("'2024-01-01'", "2024-01-01"))
    with pytest.raises(UserError, match=r"sweep\.yaml: expected text, numbers.*date.*Put a date in quotes"):
        read(file)


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, {LR: {"values": [0.1]}})
    file.write_text(file.read_text() + "method: random\n")
    with pytest.raises(UserError, match="method comes twice"):
        read(file)


SHORT = {
    "model.optimizer.lr": ([0.1, 0.2], LR),
    "model.objective": (["LastLayer", "Alternating"], "model.objective.class_path"),
    "model.backbone.name": (["vit_tiny_patch16_224"], "model.backbone.init_args.name"),
    "data.batch_size": ([16, 32], "data.init_args.batch_size"),
    "data": (["Digits"], "data.class_path"),
    "trainer.max_epochs": ([1], "trainer.max_epochs"),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_flag_may_be_as_short_as_on_the_command_line(name: str, tmp_path: Path) -> None:
    values, whole = SHORT[name]
    file = read(write(tmp_path, {name: {"values": values}}))
    recipe = check(file)
    assert whole_flag(name, recipe) == whole
    assert whole_flag(whole, recipe) == whole
    set_to = Options(file).parse({name: values[-1]})[whole]
    assert set_to == values[-1] or set_to.endswith(f".{values[-1]}")


def test_an_option_is_swept_under_one_name(tmp_path: Path) -> None:
    swept = {"model.optimizer.lr": {"values": [0.1]}, LR: {"values": [0.2]}}
    with pytest.raises(UserError, match=rf"{LR} and model.optimizer.lr are one option"):
        check(read(write(tmp_path, swept)))


@pytest.mark.parametrize(
    ("metric", "verb", "refused"),
    [
        (
            "val/acuracy",
            "fit",
            "'val/acuracy', which this run does not log. Did you mean val/accuracy",
        ),
        ("val_loss", "fit", "'val_loss'"),
        ("val/accuracy/layer_99", "fit", "layer_99"),
        ("val/accuracy", "test", "Did you mean test/accuracy"),
        ("train/loss", "validate", "train/loss"),
        ("test/loss", "test", ""),
        ("train/loss", "fit", ""),
    ],
)
def test_a_metric_that_no_trial_logs_is_refused(
    metric: str, verb: str, refused: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["${program}", verb, "--config", str(RECIPE), "${args}"]
    swept = {"data.init_args.eval_batch_size": {"values": [8]}}
    file = write(tmp_path, swept, command=command, metric={"name": metric, "goal": "minimize"})
    assert main(["sweep", str(file), "--check"]) == (2 if refused else 0)
    assert refused in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == [file], "nothing is made"


def test_a_recipe_with_callbacks_of_its_own_still_logs_what_the_default_ones_do(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.RichModelSummary}]}\n")
    command = ["${program}", "fit", "--config", str(RECIPE), "--config", str(own), "${args}"]
    check(read(write(tmp_path, {LR: {"values": [0.1]}}, command=command)))
    with pytest.raises(UserError, match="'val/accuracy', which this run does not log"):
        check(read(write(tmp_path, {"without": {"values": ["LayerAccuracyMonitor"]}}, command=command)))


@pytest.mark.parametrize(
    ("before", "lacks"),
    [
        (["torchrun", "--nproc_per_node=2", "${program}"], "torchrun --nproc_per_node=2"),
        (["${env}", "python", "my_own_fit.py"], "my_own_fit.py"),
        (["srun", "${interpreter}", "${program}"], "srun"),
    ],
)
def test_what_a_local_sweep_would_not_start_is_refused(before: list[str], lacks: str, tmp_path: Path) -> None:
    command = [*before, "fit", "--config", str(RECIPE), "${args}"]
    with pytest.raises(UserError, match=rf"starts layersim itself, but `command` has {re.escape(lacks)} before fit"):
        read(write(tmp_path, {"seed_everything": {"values": [0, 1]}}, command=command))


def test_a_variable_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["${env}", "${program}", "fit", "--trainer.default_root_dir=${envvar:SCRATCH_OF_MINE}", "${args}"]
    path = write(tmp_path, {"seed_everything": {"values": [0, 1]}}, command=command)
    with pytest.raises(UserError, match="SCRATCH_OF_MINE is not set, which the sweep file's command names"):
        read(path)
    monkeypatch.setenv("SCRATCH_OF_MINE", "there")
    assert "--trainer.default_root_dir=there" in read(path).before
