"""The recipes under experiments/paper: tasks and objectives are laid over each other, parsed, and run for two steps."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml

from layersim.__main__ import main
from layersim.report.records import LayerRecord, read_records

PAPER = Path(__file__).parent.parent / "experiments" / "paper"
OBJECTIVES = sorted((PAPER / "objectives").glob("*.yaml"))
DEPTHS = sorted((PAPER / "depth").glob("*.yaml"))
TASKS = sorted({*PAPER.rglob("*.yaml")} - {*OBJECTIVES, *DEPTHS})

SHORT = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=2",
    "--trainer.accumulate_grad_batches=1",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.batch_size=4",
]
WIDTHS = "hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 2, intermediate_size: 16, vocab_size: 258"
BERT = f"{{model_type: bert, {WIDTHS}}}"
LLAMA = f"{{model_type: llama, {WIDTHS}, num_key_value_heads: 1, pad_token_id: 257, eos_token_id: 256}}"
GPT2 = "{model_type: gpt2, n_embd: 16, n_layer: 3, n_head: 2, vocab_size: 258, eos_token_id: 256, pad_token_id: 257}"


def key(recipe: Path) -> str:
    return str(recipe.relative_to(PAPER))


def header(recipe: Path) -> str:
    lines = recipe.read_text().splitlines()
    return "\n".join(line for line in lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])


def init_args(recipe: Path, section: str) -> dict[str, Any]:
    content = yaml.safe_load(recipe.read_text())
    part = content["model"]["backbone"] if section == "backbone" else content["data"]
    return part["init_args"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny data in the shape of CIFAR-10, ImageNet, GLUE's tasks and WikiText: a folder for each."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    names = datasets.ClassLabel(names=[str(name) for name in range(10)])

    def write(path: Path, columns: dict[str, list[Any]], features: datasets.Features | None = None) -> None:
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(path)

    for split in ("train", "test", "validation"):
        images = [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(12)]
        for name, column in (("cifar10", "img"), ("imagenet-1k", "image")):
            features = datasets.Features({column: datasets.Image(), "label": names})
            write(root / name / f"{split}.parquet", {column: images, "label": [n % 10 for n in range(12)]}, features)
    for recipe in TASKS:
        data = init_args(recipe, "data")
        if "glue" in data["path"]:
            classes = init_args(recipe, "backbone")["num_classes"]
            columns = [data["text_column"], data.get("pair_column")]
            table: dict[str, list[Any]] = {name: [f"{name} {n}" for n in range(12)] for name in columns if name}
            split = datasets.Dataset.from_dict(table | {"label": [n % classes for n in range(12)]})
            datasets.DatasetDict({"train": split, data["val_split"]: split}).save_to_disk(root / data["name"])
    lines = ["", " = A heading = ", "Some words of a paragraph , and more of them . " * 20] * 20
    for split in ("train", "validation"):
        write(root / "wikitext" / f"{split}.parquet", {"text": lines})
    return root


def tiny(recipe: Path, stand_ins: Path) -> list[str]:
    """Flags that put a tiny model and tiny data in the recipe's places."""
    data, backbone = init_args(recipe, "data"), init_args(recipe, "backbone")
    flags = [*SHORT, f"--data.path={stand_ins / (data['name'] if 'glue' in data['path'] else Path(data['path']).name)}"]
    if "name" in data:
        if "wikitext" in data["path"]:
            flags[-1] = f"--data.path={stand_ins / 'wikitext'}"
        flags += ["--data.name=null", "--data.tokenizer=bytes"]
    else:
        size = f"patch_size: {8 if 'img_size' in backbone else 32}, embed_dim: 16, depth: 3, num_heads: 2"
        flags += ["--data.num_workers=0", f"--model.backbone.init_args.model_args={{{size}}}"]
        flags += ["--model.backbone.init_args.pretrained=false"]
    if "pretrained" not in backbone and "name_or_path" in backbone:
        config = BERT if "glue" in data["path"] else LLAMA if "lora" in backbone else GPT2
        flags += ["--model.backbone.init_args.name_or_path=null", "--model.backbone.init_args.pretrained=false"]
        flags += [f"--model.backbone.init_args.config_args={config}"]
    return flags


def objective(name: str) -> Path:
    return PAPER / "objectives" / f"{name}.yaml"


def last_record(directory: Path) -> LayerRecord:
    return read_records(directory / "layers.jsonl")[-1]


@pytest.mark.parametrize("recipe", TASKS, ids=key)
def test_every_task_trains_and_measures(recipe: Path, stand_ins: Path, layersim: Callable[..., Path]) -> None:
    if "lora" in init_args(recipe, "backbone"):
        pytest.importorskip("peft", reason="needs the extra `lora`")
    training = "layersim fit" in header(recipe)
    flags = tiny(recipe, stand_ins)
    if not training:
        flags = [flag for flag in flags if "max_epochs" not in flag and "accumulate" not in flag]
    overlay = [f"--config={objective('aligned')}"] if training else []
    directory = layersim("fit" if training else "validate", f"--config={recipe}", *overlay, *flags)
    record = last_record(directory)
    assert record.step == (2 if training else 0)
    assert (
        len(record.values("accuracy")) == record.layers == (6 if "config_args" in init_args(recipe, "backbone") else 3)
    )
    assert set(record.matrices) == {"cosine", "cka"}
    assert directory.parent.name == recipe.stem, "runs lie under the recipe's name"
    with (directory / "metrics.csv").open() as file:
        measured = set(next(csv.reader(file)))
    f1 = {f"val/f1/layer_{layer:02d}" for layer in (1, 2, 3)} | {"val/f1"}
    assert f1 <= measured if recipe.stem in ("mrpc", "qqp") else not f1 & measured


@pytest.mark.parametrize("recipe", OBJECTIVES, ids=key)
def test_every_objective_takes_the_place_of_the_default(
    recipe: Path, stand_ins: Path, layersim: Callable[..., Path]
) -> None:
    task = PAPER / "glue" / "rte.yaml"
    directory = layersim("fit", f"--config={task}", f"--config={recipe}", *tiny(task, stand_ins), "--experiment=named")
    assert last_record(directory).step == 2
    assert directory.parent.name == "named"
    asked, ran = (yaml.safe_load(path.read_text())["model"] for path in (recipe, directory / "config.yaml"))
    assert ran["objective"]["class_path"] == asked["objective"]["class_path"]
    assert asked["objective"].get("init_args", {}).items() <= ran["objective"]["init_args"].items()
    separate = "head" in asked
    assert ran["head"]["class_path"].rpartition(".")[2] == ("SeparateHeads" if separate else "SharedHead")


@pytest.mark.parametrize("recipe", DEPTHS, ids=key)
def test_a_depth_is_laid_over_the_task(recipe: Path, stand_ins: Path, layersim: Callable[..., Path]) -> None:
    flags = [flag for flag in tiny(PAPER / "cifar10.yaml", stand_ins) if "model_args" not in flag]
    small = [f"--model.backbone.init_args.model_args.{size}" for size in ("embed_dim=16", "num_heads=2")]
    recipes = [f"--config={path}" for path in (PAPER / "cifar10.yaml", recipe, objective("standard"))]
    record = last_record(layersim("fit", *recipes, *flags, *small))
    assert record.layers == {"six": 6, "nine": 9}[recipe.stem]


def test_gpt2_is_read_and_trained_as_in_the_authors_code(stand_ins: Path, layersim: Callable[..., Path]) -> None:
    task = PAPER / "gpt2.yaml"
    way = ["--model.head=SharedHead", "--model.head.norm=none", "--model.objective.init_args.counts=micro-batches"]
    assert all(flag in header(task) for flag in way)
    recipes = [f"--config={path}" for path in (task, objective("alternating"))]
    model = yaml.safe_load((layersim("fit", *recipes, *tiny(task, stand_ins), *way) / "config.yaml").read_text())[
        "model"
    ]
    assert model["head"]["init_args"]["norm"] == "none"
    assert model["objective"]["class_path"].endswith("Alternating")
    assert model["objective"]["init_args"]["counts"] == "micro-batches"


def test_adapters_come_back_from_a_checkpoint(stand_ins: Path, layersim: Callable[..., Path]) -> None:
    pytest.importorskip("peft", reason="needs the extra `lora`")
    task = PAPER / "llama_lora.yaml"
    flags = tiny(task, stand_ins)
    trained = layersim("fit", f"--config={task}", f"--config={objective('sampled')}", *flags)
    evaluation = [flag for flag in flags if "max_epochs" not in flag and "accumulate" not in flag]
    evaluation = [flag for flag in evaluation if "--model" not in flag]  # the checkpoint knows the model
    checkpoint = f"--ckpt_path={trained / 'checkpoints' / 'last.ckpt'}"
    again = layersim("validate", checkpoint, *evaluation, "--trainer.precision=bf16-mixed")
    assert last_record(again).values("loss") == pytest.approx(last_record(trained).values("loss"), rel=1e-6)


def test_a_wrong_option_is_refused(stand_ins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The control: what runs above runs because its options exist."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(objective("mixed").read_text().replace("switch", "swich"))
    task = PAPER / "glue" / "rte.yaml"
    assert main(["fit", f"--config={task}", f"--config={wrong}", *tiny(task, stand_ins)]) == 2
    assert "Option 'swich' is not accepted" in capsys.readouterr().err
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize("recipe", TASKS, ids=key)
def test_a_tasks_header_tells_what_to_expect(recipe: Path) -> None:
    said = header(recipe)
    assert f"--config recipe:paper/{key(recipe).removesuffix('.yaml')}" in said
    for word in ("4 GPUs: ", "Hardware: ", "Hours (an estimate", "Published", "Differs from the paper: "):
        assert word in said.replace("\n# ", " "), word


@pytest.mark.parametrize("recipe", [*OBJECTIVES, *DEPTHS], ids=key)
def test_an_overlays_header_tells_its_command(recipe: Path) -> None:
    assert f"--config recipe:paper/{key(recipe).removesuffix('.yaml')}" in header(recipe)


def test_the_index_names_every_recipe() -> None:
    index = (PAPER / "README.md").read_text()
    assert not [key(recipe) for recipe in (*TASKS, *OBJECTIVES, *DEPTHS) if f"`{key(recipe)}`" not in index]
