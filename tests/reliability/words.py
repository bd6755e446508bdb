"""Command lines at random: a small one that works, and one or two options with values right, odd or absurd."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
import yaml
from PIL import Image

import callbacks
from layersim import data, heads, objectives
from layersim.__main__ import main
from layersim.commands.parser import Data
from layersim.commands.sweep_check import Parsed
from layersim.report.configuration import flat
from tests import tiny

ABSURD = [
    *("inf", "-inf", "nan", "-1", "0", "1", "2.5", "1e400", "1e-400", "1e30", "9" * 30, "0x10", "true", "null", "~"),
    *("", " ", "abc", "é", "x" * 3000, "[]", "{}", "[1, 2]", "[[]]", "{a: 1}", "[null]", "{class_path: }", "[inf]"),
    *(
        "{class_path: torch.nn.Linear, init_args: {in_features: x}}",
        "nowhere.Here",
        "os.path",
        "*",
        "&a [*a]",
        "[",
        "{",
    ),
    *("!!python/object/apply:os.getcwd []", "a: b: c", "'", '"', "\n", "\\", "%s", "{0}", "$HOME", "2026-11-29", "=1"),
    *("-", "--", "1_0", "[red]x[/red]", "<b>", "\udcff", "/", "..", "nowhere/there", "runs", "/dev/null"),
]
RIGHT: dict[type, list[str]] = {bool: ["true", "false"], int: ["1", "2", "3"], float: ["0.1", "0.5", "1.0"]}
PATHS = [
    *(
        "nowhere",
        ".",
        "folder.yaml",
        "folder.ckpt",
        "empty.yaml",
        "empty.ckpt",
        "noise.yaml",
        "noise.ckpt",
        "list.yaml",
    ),
    *("theirs.json", "theirs.yaml", "deep.yaml", "latin.yaml", "aliases.yaml", "loop.yaml", "list.ckpt", "state.ckpt"),
    *("cut.ckpt", "run", "run/config.yaml", "run/layers.jsonl", "run/metrics.csv", "run/checkpoints/last.ckpt"),
    *("heads/config.yaml", "heads/checkpoints/last.ckpt", "heads", "broken", "mixed", "sweep.yaml", "bad_sweep.yaml"),
    *("x" * 300, "run/config.yaml/x", "é.yaml", "/dev/null", ""),
]
NEVER = ("devices", "num_nodes", "strategy", "num_workers", "compile")
"""Options that start processes or wait for them, and one that takes minutes."""
SMALL = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--trainer.max_steps=3"]
FEW = "--without=SimilarityHeatmaps,SaturationMonitor,ExitCurveMonitor,ReportWriter"
FIT = [*tiny.FLAGS, FEW, *SMALL, "--model.optimizer=AdamW"]
MODEL = [flag for flag in tiny.FLAGS if "max_epochs" not in flag]
STORED = [*(flag for flag in MODEL if flag.startswith("--trainer")), "--ckpt_path=run/checkpoints/last.ckpt", FEW]
QUIET = ["--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2", "--trainer.limit_predict_batches=2"]
HUGGING_FACE = [
    *("--model.backbone=TransformersBackbone", "--model.backbone.pretrained=false", "--model.optimizer=AdamW"),
    *(flag for flag in tiny.FLAGS if flag.startswith("--trainer")),
    *SMALL,
]
GPT = {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 258, "n_positions": 64}
GPT |= {"pad_token_id": 257, "bos_token_id": 257, "eos_token_id": 257}
BERT = {"model_type": "bert", "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LINES: list[tuple[int, list[str]]] = [
    (8, ["fit", *FIT, "--model.lr_scheduler=WarmupDecay"]),
    (4, ["fit", *FIT, "--model.head=SeparateHeads", "--model.objective=Alternating"]),
    (3, ["fit", *FIT, "--model.optimizer=SGD", "--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=1"]),
    (2, ["fit", *FIT, "--model.objective=Mixed", "--model.lr_scheduler=ReduceLROnPlateau"]),
    (2, ["fit", *tiny.FLAGS, *SMALL]),
    (2, ["fit", *STORED, *SMALL, "--trainer.max_steps=5", "--trainer.max_epochs=2"]),
    (1, ["fit", "--resume=run", *SMALL, "--trainer.max_steps=5", "--trainer.max_epochs=2"]),
    (1, ["fit", "--config=run/config.yaml"]),
    (
        3,
        [
            "fit",
            *HUGGING_FACE,
            "--model.backbone.task=language-modeling",
            f"--model.backbone.config_args={GPT}",
            "--data=StdlibCode",
            "--data.block_size=48",
            "--data.max_files=3",
            FEW,
        ],
    ),
    (
        3,
        [
            "fit",
            *HUGGING_FACE,
            "--model.backbone.task=classification",
            f"--model.backbone.config_args={BERT}",
            "--data=Text",
            "--data.path=rows.tsv",
            "--data.tokenizer=bytes",
            FEW,
        ],
    ),
    (3, ["fit", *FIT, "--data=Images", "--data.path=pictures", "--data.val_fraction=0.5"]),
    (3, ["validate", *MODEL, FEW, QUIET[0]]),
    (2, ["validate", *STORED, QUIET[0]]),
    (1, ["test", *STORED, "--data.test_fraction=0.1", QUIET[1]]),
    (2, ["predict", *STORED, QUIET[2]]),
    (3, ["exits", *STORED, "--risk=0.5", "--measure_speed=false"]),
    (3, ["export", *STORED, "--to=out"]),
    (2, ["compare", "run", "heads", "--output=out.png"]),
    (2, ["claims", "--standard", "run", "--separate", "heads", "--output=out.md"]),
    (1, ["report", "run", "--output=out.html"]),
    (1, ["runs", "."]),
    (2, ["similarity", "--a=run", "--b=heads", "--max_samples=64", "--device=cpu", "--to=out"]),
    (
        2,
        ["transfer", "--ckpt_path=run", "--strengths={rotation: [10]}", "--max_samples=64", "--device=cpu", "--to=out"],
    ),
    (1, ["dashboard", "a/b", "--dry_run=out.json"]),
    (1, ["sweep", "sweep.yaml", "--check"]),
    (1, ["families", "bert", "--library=transformers"]),
]
"""Lines that work, and how often each is drawn."""
CLASSES = {
    "model.objective": [*objectives.__all__, "torch.nn.CrossEntropyLoss"],
    "model.head": [name for name in dir(heads) if name.endswith("Head") or name.endswith("Heads")],
    "model.backbone": ["TimmBackbone", "TransformersBackbone", "torch.nn.Linear"],
    "model.optimizer": ["AdamW", "SGD", "Adam", "RMSprop", "LBFGS", "Adagrad", "Rprop", "Muon", "SparseAdam"],
    "model.lr_scheduler": [
        *("StepLR", "OneCycleLR", "CosineAnnealingLR", "WarmupDecay", "ReduceLROnPlateau", "CyclicLR", "LambdaLR"),
        *("ExponentialLR", "ConstantLR", "LinearLR", "MultiStepLR", "PolynomialLR", "SequentialLR", "ChainedScheduler"),
    ],
    "data": [name for name in data.__all__ if isinstance(getattr(data, name), type)],
    "trainer.logger": ["CSVLogger", "TensorBoardLogger", "layersim.runs.tracking.TensorBoard", "WandbLogger"],
    "trainer.profiler": ["SimpleProfiler", "AdvancedProfiler"],
    "trainer.plugins": ["TorchCheckpointIO", "WholeCheckpoints", "AsyncCheckpointIO", "MixedPrecision"],
    "trainer.callbacks+": [
        *(f"callbacks.{name}" for name in callbacks.__all__),
        *("EarlyStopping", "ModelCheckpoint", "GradientAccumulationScheduler", "StochasticWeightAveraging", "Timer"),
        *("LearningRateMonitor", "BatchSizeFinder", "LearningRateFinder", "RichModelSummary", "TQDMProgressBar"),
        *("WeightAveraging", "EMAWeightAveraging", "BackboneFinetuning", "ModelPruning", "DeviceStatsMonitor"),
        *("ThroughputMonitor", "LambdaCallback", "RichProgressBar", "OnExceptionCheckpoint", "Callback"),
    ],
}
"""Classes for options that take one."""


def draw_line(draw: random.Random) -> list[str]:
    """The words behind `layersim`."""
    _, line = draw.choices(LINES, [often for often, _ in LINES])[0]
    verb, *words = line
    known = options(tuple(line))
    for _ in range(draw.choice([1, 1, 2])):
        words = _changed(draw, verb, words, known)
    return [verb, *words]


def _changed(draw: random.Random, verb: str, words: list[str], known: Mapping[str, Any]) -> list[str]:
    in_loops = "trainer.max_epochs" in known
    way = draw.random()
    if way < 0.03:  # an option that is not there, a word out of place, or no value
        odd = ["--trainer.foo=1", "--nothing", "word", f"--{draw.choice(sorted(known))}", "-1", "--", "--config", ""]
        return [*words, draw.choice(odd)]
    if way < 0.12 and in_loops:
        return [*words, f"--{draw.choice(['config', 'config', 'ckpt_path', 'data', 'model'])}={draw.choice(PATHS)}"]
    if way < 0.24 and in_loops:
        option = draw.choice(sorted(CLASSES))
        return [*words, *_with_class(draw, option, draw.choice(CLASSES[option]))]
    name = draw.choice(sorted(known))
    values = RIGHT_OF(known[name]) if draw.random() < 0.4 else None
    values = values or draw.sample(ABSURD, 6)
    if str(known[name]).find("Path") >= 0 or name in ("a", "b", "ckpt_path", "run", "file", "root"):
        values = [*draw.sample(PATHS, 8), *draw.sample(ABSURD, 1)]
    if verb == "claims" and name in ("standard", "aligned", "alternating", "separate"):
        values = draw.sample(PATHS, 5)
    value = draw.choice(values)
    if verb == "dashboard" and value in ("null", "~"):
        value = "out.json"  # it would ask the server
    if name in IN_PLACE.get(verb, ()):
        return [value, *words] if draw.random() < 0.5 else [value, *(word for word in words if word.startswith("-"))]
    return [*words, f"--{name}={value}"] if draw.random() < 0.9 else [*words, f"--{name}", value]


def _with_class(draw: random.Random, option: str, name: str) -> list[str]:
    """A class for an option, with none, one or two of its own options."""
    arguments = _arguments(option, name)
    chosen = draw.sample(sorted(arguments), min(draw.choice([0, 1, 1, 2]), len(arguments)))
    told = {key: draw.choice(RIGHT_OF(arguments[key]) * 3 + draw.sample(ABSURD, 3)) for key in chosen}
    if not option.endswith("+") and draw.random() < 0.6:
        return [f"--{option}={name}", *(f"--{option}.{key}={value}" for key, value in told.items())]
    return [f"--{option}={json.dumps({'class_path': name, 'init_args': {k: _read(v) for k, v in told.items()}})}"]


def _read(value: str) -> Any:
    try:
        return json.loads(json.dumps(yaml.safe_load(value)))
    except (yaml.YAMLError, ValueError, TypeError):
        return value


@cache
def _arguments(option: str, name: str) -> dict[str, Any]:
    homes = ["", "layersim.data.", "layersim.objectives.", "layersim.heads.", "layersim.backbones.", "torch.optim."]
    homes += ["torch.optim.lr_scheduler.", "layersim.optimization.schedules.", "lightning.pytorch.callbacks."]
    homes += ["lightning.pytorch.loggers.", "lightning.pytorch.profilers.", "lightning.pytorch.plugins."]
    homes += ["layersim.runs.whole_checkpoints."]
    for home in homes:
        module, _, last = f"{home}{name}".rpartition(".")
        try:
            kind = getattr(import_module(module), last)
        except (ImportError, AttributeError, ValueError):
            continue
        return {key: each for key, each in annotations(kind.__init__).items() if key not in NEVER}
    raise LookupError(f"{option}: {name}")


def annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """What each parameter of a function is annotated with."""
    try:
        told = get_type_hints(function)
    except Exception:  # a name that is there for type checkers alone
        told = {}
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return {
        name: told.get(name, parameter.annotation)
        for name, parameter in signature(function).parameters.items()
        if name != "self" and parameter.kind in kinds
    }


IN_PLACE = {"compare": ("run",), "report": ("run",), "runs": ("root",), "dashboard": ("project",)}
IN_PLACE |= {"sweep": ("file",), "families": ("names",)}
"""What stands in its place on the command line."""


@cache
def options(line: tuple[str, ...]) -> dict[str, Any]:
    """What can be set beside the words of a line, by flag, and of which type."""
    verb, *words = line
    if not any(word.startswith(("--trainer", "--config", "--resume")) for word in words):
        home = import_module(f"layersim.commands.{verb}")
        return {
            name: kind for name, kind in annotations(getattr(home, verb)).items() if kind != Data and name != "check"
        }
    parsed = Parsed([*line])
    parser = parsed._parser(verb)
    types = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    given = yaml.safe_load(parser.dump(parsed.config[verb], skip_none=False, skip_validation=True))
    found = {name: types.get(name) or _nested(given, name) for name in flat(given)}
    return {name: kind for name, kind in found.items() if not set(name.split(".")) & {*NEVER, "class_path"}}


def _nested(given: Any, name: str) -> Any:
    """The type of an argument of a class that a configuration names, or of the value that it has."""
    section, _, last = name.rpartition(".init_args.")
    value = given
    for key in name.split("."):
        value = value[key]
    for key in section.split(".") if section else ():
        given = given[key]
    if not section or "." in last or not isinstance(given, dict):
        return type(value)
    module, _, kind = given["class_path"].rpartition(".")
    return annotations(getattr(import_module(module), kind).__init__).get(last, type(value))


def RIGHT_OF(kind: Any) -> list[str]:
    """Values that an annotation allows, as far as it tells."""
    if isinstance(kind, type) and kind in RIGHT:
        return RIGHT[kind]
    found = [str(each) for each in get_args(kind) if isinstance(each, str | bool | int)]
    for each in get_args(kind):
        found += RIGHT_OF(each)
    return found


def make_there(folder: Path) -> None:
    """In a folder all that the paths among the words name: two runs, their files, and what is none."""
    for name, more in {"run": [], "heads": ["--model.head=SeparateHeads"]}.items():
        with contextlib.chdir(folder):  # a root of their own would be that of all lines that take their configuration
            assert main(["fit", *FIT, "--trainer.max_epochs=1", *more]) == 0
        (made,) = (folder / "runs/default").iterdir()
        made.rename(folder / name)
    shutil.rmtree(folder / "runs")
    run = folder / "run"
    for name in ("broken", "mixed"):
        shutil.copytree(run, folder / name)
    (folder / "broken/config.yaml").write_bytes(random.Random(0).randbytes(300))
    (folder / "broken/layers.jsonl").write_bytes((run / "layers.jsonl").read_bytes()[:200])
    for part in ("layers.jsonl", "metrics.csv", "checkpoints/last.ckpt"):
        shutil.copy(folder / "heads" / part, folder / "mixed" / part)
    checkpoint = run / "checkpoints/last.ckpt"
    (folder / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:-900])
    torch.save([1, 2], folder / "list.ckpt")
    torch.save(torch.load(checkpoint, weights_only=True)["state_dict"], folder / "state.ckpt")
    for suffix in ("yaml", "ckpt"):
        (folder / f"empty.{suffix}").touch()
        (folder / f"folder.{suffix}").mkdir()
        (folder / f"noise.{suffix}").write_bytes(random.Random(0).randbytes(999))
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "list.yaml").write_text("- 1\n- 2\n")
    (folder / "theirs.json").write_text('{"name": "theirs", "scripts": {"build": "make"}, "model": 3}')
    (folder / "theirs.yaml").write_text("version: 3\nservices: {web: {image: nginx, ports: ['80:80']}}\n")
    (folder / "deep.yaml").write_text("model: " + "{a: " * 200 + "1" + "}" * 200)
    (folder / "latin.yaml").write_bytes("experiment: größe\n".encode("latin-1"))
    (folder / "é.yaml").write_text("experiment: é\n")
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))
    (folder / "aliases.yaml").write_text(f"a0: &a0 [x]\n{levels}\n")
    (folder / "rows.tsv").write_text("text\tlabel\n" + "a good film\t1\na bad film\t0\n" * 9)
    for number in range(12):
        (place := folder / f"pictures/{'even' if number % 2 == 0 else 'odd'}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(place / f"{number}.png")
    sweep: dict[str, Any] = {"method": "grid", "metric": {"name": "val/accuracy", "goal": "maximize"}}
    sweep |= {"parameters": {"seed_everything": {"values": [0, 1]}}, "command": ["${program}", "fit", *FIT, "${args}"]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (folder / "bad_sweep.yaml").write_text(yaml.safe_dump(sweep | {"parameters": {"model.foo": {"values": [0]}}}))
