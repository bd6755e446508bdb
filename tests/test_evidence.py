"""experiments/paper/evidence: which runs count, what the tables say of them, and one task from training to verdicts."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from layersim.report.records import append_record, read_records
from tests.report.recorded import recorded

EVIDENCE = Path(__file__).parent.parent / "experiments" / "paper" / "evidence"
EPOCHS = 3


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of the scripts, which stand beside each other and not in a package."""
    monkeypatch.syspath_prepend(str(EVIDENCE))
    names = [path.stem for path in EVIDENCE.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield lambda name: __import__(name)
    for name in names:
        sys.modules.pop(name, None)


def make(root: Path, objective: str, seed: int, *, epoch: int = EPOCHS - 1, task: str = "digits", **facts: Any) -> Path:
    directory = root / "paper" / task / objective / f"run-{seed}-{epoch}"
    values: dict[str, Any] = {"epoch": epoch, "step": 30, "stage": "validate", "layers": 6, "samples": 100}
    directory.mkdir(parents=True)
    append_record(directory / "layers.jsonl", recorded(**(values | facts)))
    head = "SeparateHeads" if objective == "separate_heads" else "SharedHead"
    model = {
        "backbone": {"class_path": "layersim.TimmBackbone", "init_args": {"name": "vit"}},
        "objective": {"class_path": f"layersim.{'LastLayer' if objective == 'standard' else 'Aligned'}"},
        "head": {"class_path": f"layersim.{head}"},
    }
    data = {"class_path": "layersim.data.Digits", "init_args": {"seed": seed}}
    config = {"seed_everything": seed, "trainer": {"max_epochs": EPOCHS}, "model": model, "data": data}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return directory


def test_recipes_and_objectives_are_there(evidence: Any) -> None:
    tasks: ModuleType = evidence("tasks")
    for task in tasks.TASKS.values():
        for objective in (*task.objectives, *task.neighbours):
            configs = [
                arg.removeprefix("--config=") for arg in task.fit(objective, 0, Path("/data")) if "--config" in arg
            ]
            assert [Path(path).is_file() for path in configs] == [True, True]
        assert any("/data/" in arg for arg in task.fit("aligned", 0, Path("/data"))) == (task.folder is not None)


def test_jobs_come_seed_by_seed_and_claims_first(evidence: Any) -> None:
    jobs = evidence("jobs").jobs
    told = [str(job) for job in jobs(["digits", "sst2_small"], True, [0, 1], None)]
    assert told[:6] == [
        f"digits {name} {seed}" for seed in (0, 1) for name in ("standard", "aligned", "separate_heads")
    ]
    assert len(told) == len(set(told)) == 2 * 10  # no task without its data
    with_data = [str(job) for job in jobs(["digits", "sst2_small"], False, [0], Path("/data"))]
    assert with_data[3:] == [f"sst2_small {name} 0" for name in ("standard", "aligned", "separate_heads")]


def test_only_runs_that_reached_their_last_epoch_count(evidence: Any, tmp_path: Path) -> None:
    found, tasks = evidence("found"), evidence("tasks")
    make(tmp_path, "aligned", 0, epoch=1)
    assert found.trained(tmp_path, tasks.TASKS["digits"], "aligned") == {}
    whole = make(tmp_path, "aligned", 0)
    trained = found.trained(tmp_path, tasks.TASKS["digits"], "aligned")
    assert {seed: model.directory for seed, model in trained.items()} == {0: whole}
    assert [model.directory for model in found.all_trained(tmp_path)] == [whole]


def test_tables_against_numbers_by_hand(evidence: Any, tmp_path: Path) -> None:
    found, tables = evidence("found"), evidence("tables")
    for seed, last in ((0, 0.9), (1, 0.8)):
        make(tmp_path, "standard", seed, accuracy=[0.1, 0.2, 0.3, 0.4, 0.5, last])
        make(tmp_path, "uniform", seed, accuracy=[0.1, 0.2, 0.3 + 0.1 * seed, 0.6, 0.7, last - 0.02 - 0.02 * seed])
    make(tmp_path, "aligned", 7, accuracy=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    arms = tables.by_task(found.all_trained(tmp_path))["digits"]
    assert tables.layers_table(arms, ("standard", "uniform", "sampled")).splitlines()[-1] == (
        "| 6 | 0.850 ± 0.071 | 0.820 ± 0.085 |"
    )
    lines = tables.objectives_table(arms).splitlines()
    assert lines[2] == "| standard | 0.300 ± 0.000 | 0.400 ± 0.000 | 0.850 ± 0.071 |  |  |  |  | 2 |"
    assert lines[3] == "| aligned | 0.300 | 0.400 | 0.600 |  |  |  |  | 1 |"  # no standard run of its seed
    # Student's 0.975 quantile at one degree of freedom is 12.706: -0.030 ± 12.706 · 0.01
    more = "-0.030 (-0.157 … +0.097)"
    assert lines[4] == f"| uniform | 0.350 ± 0.071 | 0.600 ± 0.000 | 0.820 ± 0.085 |  |  |  | {more} | 2 |"
    make(tmp_path, "aligned", 1, accuracy=[0.1, 0.2, 0.5, 0.4, 0.5, 0.6])
    lines = tables.objectives_table(tables.by_task(found.all_trained(tmp_path))["digits"]).splitlines()
    assert lines[4].split(" | ")[4:7] == ["-0.100", "+0.200", "+0.160"]  # of seed 1 alone, which has no interval


def test_the_overview_marks_what_is_beyond_its_interval(evidence: Any, tmp_path: Path) -> None:
    found, tables = evidence("found"), evidence("tables")
    for seed in range(3):
        shift = 0.01 * seed
        make(tmp_path, "aligned", seed, accuracy=[0.1, 0.2, 0.3 + shift, 0.6, 0.7, 0.9 - shift])
        make(tmp_path, "uniform", seed, accuracy=[0.1, 0.2, 0.4 + 1.1 * shift, 0.6, 0.7, 0.8 - shift * 0.9])
        make(tmp_path, "aligned", seed, task="stdlib_code", loss=np.log([9, 9, 9 + shift, 8, 8, 7 - shift]).tolist())
        make(tmp_path, "mixed", seed, task="stdlib_code", loss=np.log([9, 9, 8 + 2 * shift, 8, 8, 8]).tolist())
        make(tmp_path, "aligned", seed, task="cifar10_small", accuracy=[0.1] * 6)  # nothing to be set beside it
    header, _, *rows = tables.overview_table(tables.by_task(found.all_trained(tmp_path))).splitlines()
    assert header == "| objective | Digits, ViT | Standard library, GPT |"
    assert rows == [
        "| aligned | 0.310 / 0.600 / 0.890 | 9.01 / 8.00 / 6.99 |",
        "| uniform | 0.411▲ / 0.600 / 0.791▼ |  |",
        "| mixed |  | 8.02▲ / 8.00 / 8.00▼ |",
    ]
    make(tmp_path, "sampled", 0, accuracy=[0.9] * 6)  # of one seed, which has no interval
    assert "| sampled | 0.900 / 0.900 / 0.900 |  |" in tables.overview_table(
        tables.by_task(found.all_trained(tmp_path))
    )


def test_verdicts_are_those_of_the_aligned_loss(evidence: Any, tmp_path: Path) -> None:
    found, results = evidence("found"), evidence("results")
    for seed in range(3):
        make(tmp_path, "standard", seed, accuracy=[0.1, 0.1, 0.1, 0.4, 0.5, 0.8 + 0.001 * seed])
        make(tmp_path, "aligned", seed, accuracy=[0.6, 0.6, 0.6, 0.6, 0.7, 0.7 + 0.002 * seed])
        make(tmp_path, "separate_heads", seed, accuracy=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert len(found.all_trained(tmp_path)) == 9
    results.write(tmp_path, Console(file=io.StringIO()))
    told = [line.split(" | ") for line in (tmp_path / "tables.md").read_text().splitlines() if line.startswith("| ")]
    rows = {cells[0]: cells[1] for cells in told}
    assert rows["| shallow-layers"] == "0.500 ✓"
    assert rows["| last-layer"] == "0.099 ✗"
    assert rows["| accuracy-rises"] == "0.000 ?", "of the aligned loss, not of a head for each layer"
    assert rows["| transfer-task"] == "", "which nobody measured"


def test_tokens_are_told_by_their_perplexity(evidence: Any, tmp_path: Path) -> None:
    found, tables = evidence("found"), evidence("tables")
    make(tmp_path, "standard", 0, task="stdlib_code", loss=np.log([9.0, 8.0, 7.0, 6.0, 5.0, 4.0]).tolist())
    (model,) = found.all_trained(tmp_path)
    np.testing.assert_allclose(tables.quality(model), [9, 8, 7, 6, 5, 4], rtol=1e-12)


def test_a_task_from_training_to_verdicts(evidence: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, tasks = evidence("train"), evidence("tasks")
    fit = tasks.Task.fit
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    monkeypatch.setattr(tasks.Task, "fit", lambda *args: [*fit(*args), *short])
    monkeypatch.setitem(tasks.TASKS, "digits", replace(tasks.TASKS["digits"], objectives=("aligned",), neighbours=()))
    monkeypatch.setattr(sys, "argv", ["train.py", f"--root={tmp_path}", "--tasks", "digits", "--seeds", "0"])
    assert train.main() == 0
    lines = (tmp_path / "claims.md").read_text().splitlines()
    told = {line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")}
    assert {"similarity-rises", "probability-rises", "parameters-saved"} <= told
    assert "## Digits, ViT" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "evidence.png").read_bytes().startswith(b"\x89PNG")

    assert any(line.startswith("| similarity-beyond-chance | aligned | 0.") for line in lines), "of the validation"

    done = sorted(path.parent for path in tmp_path.rglob("layers.jsonl"))
    assert train.main() == 0
    assert sorted(path.parent for path in tmp_path.rglob("layers.jsonl")) == done  # nothing is done again
    assert len(done) == 2, "trained, and against chance"

    ((removal, scores),) = evidence("blocks").tried(done[1] / "checkpoints/last.ckpt", [2], 2)
    assert (removal.last - removal.first, len(scores)) == (1, 4)
    at = read_records(done[1] / "layers.jsonl")[-1].quantities
    whole, cut = ([(at["loss"].values[layer], at["accuracy"].values[layer])] for layer in (5, 3))
    np.testing.assert_allclose(scores[:2], [*whole, *cut], rtol=1e-5)
