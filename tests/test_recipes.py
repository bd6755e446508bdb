"""Every shipped recipe is what its header says: parsed, and run for two steps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
RECIPES = sorted(EXPERIMENTS.rglob("*.yaml"))

SMALL: dict[str, list[str]] = {
    # What a recipe needs in place of a download or of hours; the rest runs as it is.
}


def key(recipe: Path) -> str:
    return str(recipe.relative_to(EXPERIMENTS))


@pytest.mark.parametrize("recipe", RECIPES, ids=key)
def test_a_recipe_trains_and_measures(recipe: Path, layersim: Callable[..., Path]) -> None:
    directory = layersim(
        "fit",
        f"--config={recipe}",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=2",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        *SMALL.get(key(recipe), []),
    )
    (line,) = (directory / "layers.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["step"] == 2
    assert len(record["accuracy"]) == record["layers"]
    assert set(record["similarity"]) == {"cosine", "cka"}


@pytest.mark.parametrize("recipe", RECIPES, ids=key)
def test_a_recipe_opens_with_its_command(recipe: Path) -> None:
    header = recipe.read_text().split("\n\n")[0]
    assert f"layersim fit --config experiments/{key(recipe)}" in header
    assert "Hardware" in header
