"""`layersim claims`: which runs are put together, what is told of the others, and the command."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from layersim.__main__ import main
from layersim.errors import UserError
from layersim.report.claims import judge_runs
from layersim.report.exits import write_exit_report
from tests.report.claims.synthetic import (
    APART,
    DEFAULTS,
    EARLY,
    FALLS,
    LATE,
    RISES,
    WAYS,
    WORSE,
    Facts,
    findings,
    fixed,
    make,
    wiggle,
)
from tests.report.test_exits import report as exit_report


def test_one_run_of_each_is_judged_over_its_samples(tmp_path: Path) -> None:
    ways = {"standard": fixed(accuracy=LATE), "shared": fixed(accuracy=EARLY)}
    (finding,) = findings(tmp_path, ways, "shallow-layers", seeds=1)
    assert (finding.verdict, finding.why) == ("holds", "over the samples of one run; another seed may differ")


def test_tokens_are_no_independent_samples(tmp_path: Path) -> None:
    ways = {"standard": fixed(accuracy=LATE, unit="tokens"), "shared": fixed(accuracy=EARLY, unit="tokens")}
    (finding,) = findings(tmp_path, ways, "shallow-layers", seeds=1)
    assert (finding.verdict, finding.why) == ("cannot tell", "no interval from one run")


def test_recorded_intervals_of_similarity_count_for_one_run(tmp_path: Path) -> None:
    similarity = (1 - 0.2 * APART).tolist()
    for width, verdict in ((0.01, "holds"), (0.4, "cannot tell")):
        ends = {end: (1 - 0.2 * APART + side * width).tolist() for end, side in (("low", -1), ("high", 1))}
        facts = {"similarity": {"cosine": similarity}, "similarity_interval": {"cosine": {"confidence": 0.95, **ends}}}
        (finding,) = findings(tmp_path / str(width), {"standard": fixed(**facts)}, "similarity-rises", seeds=1)
        assert finding.verdict == verdict
        assert finding.estimate is not None
        assert finding.estimate.high == pytest.approx(-0.2 + math.sqrt(2) * width)


def test_parameters_are_those_that_training_counted(tmp_path: Path) -> None:
    run = make(tmp_path / "run", "shared", 0)
    (run / "environment.json").write_text(json.dumps({"parameters": {"share_saved": 0.25}}))
    ((_, found),), _ = judge_runs([run], DEFAULTS)
    (finding,) = [finding for finding in found if finding.claim.name == "parameters-saved"]
    assert finding.verdict == "holds"
    assert finding.estimate is not None
    assert finding.estimate.value == 0.25


def test_another_model_is_another_study(tmp_path: Path) -> None:
    """The same way at another learning rate is never mixed in."""
    runs = [make(tmp_path / f"{way}{lr}", way, 0, {"accuracy": RISES}, lr=lr) for way in WAYS for lr in (0.1, 0.2)]
    judged, notes = judge_runs(runs, DEFAULTS)
    assert [[arm.role for arm in study.arms.values()] for study, _ in judged] == [
        ["standard", "shared", "separate"]
    ] * 2
    assert notes == [
        f"{judged[1][0].name} is judged apart from {judged[0][0].name}: they differ in model.optimizer.lr."
    ]


def test_another_split_is_another_seed(tmp_path: Path) -> None:
    """Runs whose split is drawn anew are paired by it, transfer included."""
    runs = [
        make(tmp_path / f"{way}{seed}", way, 0, {"accuracy": values, "shifted": values}, data_seed=seed)
        for way, values in (("standard", LATE), ("shared", EARLY))
        for seed in range(3)
    ]
    for run in runs:
        path = run / "transfer.json"
        section = {"class_path": "layersim.data.Digits", "init_args": {"seed": int(run.name[-1])}}
        path.write_text(path.read_text().replace('"data": {}', f'"data": {json.dumps(section)}'))
    ((study, found),), notes = judge_runs(runs, DEFAULTS)
    assert notes == []
    assert list(study.arms["LastLayer"].runs) == ["0", "0 (data 1)", "0 (data 2)"]
    (finding,) = [finding for finding in found if finding.claim.name == "transfer-shift"]
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(0.0)
    assert finding.estimate.basis == "3 seeds, paired"


def test_runs_that_stopped_early_are_passed_over(tmp_path: Path) -> None:
    whole, cut = (
        make(tmp_path / str(epoch), "standard", epoch, {"accuracy": RISES, "epoch": epoch}) for epoch in (2, 0)
    )
    ((study, _),), notes = judge_runs([whole, cut], DEFAULTS)
    assert [run.directory for arm in study.arms.values() for run in arm.runs.values()] == [whole]
    assert notes == [f"{cut} is passed over: its last validation is of epoch 1 of 3."]
    stopped = make(tmp_path / "steps", "standard", 5, {"accuracy": RISES, "epoch": 0}, max_steps=30)
    ((study, _),), notes = judge_runs([stopped], DEFAULTS)
    assert (list(study.arms["LastLayer"].runs), notes) == (["5"], [])


def test_directories_without_a_validation_are_passed_over(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", "standard", 0, {"accuracy": RISES})
    tested = make(tmp_path / "tested", "standard", 1, {"accuracy": RISES, "stage": "test"})
    killed = make(tmp_path / "killed", "standard", 2, {"accuracy": RISES})
    (killed / "layers.jsonl").unlink()
    _, notes = judge_runs([whole, tested, killed], DEFAULTS)
    assert notes == [f"{run} is passed over: it holds no validation." for run in (tested, killed)]


def test_evaluations_are_known_by_the_seed_of_the_training(tmp_path: Path) -> None:
    runs = []
    for seed in range(3):
        fitted = make(tmp_path / f"fitted{seed}", "shared", seed, {"accuracy": wiggle(RISES)(seed)})
        facts = {"step": 0, "ckpt_path": str(fitted / "checkpoints/last.ckpt"), "accuracy": wiggle(RISES)(seed)}
        runs.append(make(tmp_path / f"evaluated{seed}", "shared", 0, facts))
    ((study, _),), notes = judge_runs(runs, DEFAULTS)
    assert (list(study.arms["Aligned"].runs), notes) == (["0", "1", "2"], [])


def test_processes_count_with_the_batch(tmp_path: Path) -> None:
    """Four processes with a quarter of the batch take the same steps; with the same batch they take others."""
    runs = [make(tmp_path / str(seed), "standard", seed, {"accuracy": RISES}) for seed in range(3)]
    for run, (batch, processes) in zip(runs, ((64, 1), (16, 4), (64, 4)), strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"]["init_args"]["batch_size"] = batch
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "environment.json").write_text(json.dumps({"processes": str(processes)}))
    judged, _ = judge_runs(runs, DEFAULTS)
    assert [list(study.arms["LastLayer"].runs) for study, _ in judged] == [["0", "1"], ["2"]]


@pytest.mark.parametrize(
    ("objective", "options", "head", "role"),
    [
        ("LastLayer", {}, "SharedHead", "standard"),
        ("Aligned", {"weights": "last"}, "SharedHead", "standard"),
        ("CosineRegularized", {}, "SharedHead", "other"),
        ("LastLayer", {}, "SeparateHeads", "other"),
        ("Aligned", {}, "SeparateHeads", "separate"),
        ("Mixed", {}, "SharedHead", "shared"),
    ],
)
def test_roles_are_by_what_trains_the_head(
    tmp_path: Path, objective: str, options: dict[str, Any], head: str, role: str
) -> None:
    run = make(tmp_path / "run", "shared", 0, {"accuracy": RISES})
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["objective"] = {"class_path": f"layersim.{objective}", "init_args": options}
    config["model"]["head"] = {"class_path": f"layersim.{head}"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    ((study, _),), _ = judge_runs([run], DEFAULTS)
    assert [arm.role for arm in study.arms.values()] == [role]


def test_exits_by_other_rules_are_not_compared(tmp_path: Path) -> None:
    runs = [make(tmp_path / way, way, 0, {"exits": 0.5}) for way in ("separate", "shared")]
    for run, policy in zip(runs, ("entropy", "confidence"), strict=True):
        curve = {"threshold": [0.1, 0.9], "mean_exit_layer": [1.0, 4.0], "accuracy": [0.5, 0.9]}
        bands = {f"{key}_interval": [[0.0, 4.0]] * 2 for key in ("mean_exit_layer", "accuracy")}
        write_exit_report(run, exit_report(policy=policy, curve=curve | bands))
    ((_, found),), _ = judge_runs(runs, DEFAULTS)
    (finding,) = [finding for finding in found if finding.claim.name == "one-head-on-par"]
    assert "different policies" in finding.why


def test_an_evaluation_adds_measures_and_intervals_of_the_same_measure(tmp_path: Path) -> None:
    matrix = (1 - 0.2 * APART).tolist()
    interval = {"confidence": 0.95, "low": matrix, "high": matrix}
    fitted = make(tmp_path / "fitted", "shared", 0, {"similarity": {"cosine": matrix}, "options": {"cosine": {"a": 1}}})
    for option, added in ((1, "cosine's interval, cka"), (2, "cka")):
        facts: Facts = {"step": 0, "ckpt_path": str(fitted / "checkpoints/last.ckpt")}
        facts |= {"similarity": {"cosine": matrix, "cka": matrix}, "options": {"cosine": {"a": option}}}
        run = make(tmp_path / f"of{option}", "shared", 0, facts | {"similarity_interval": {"cosine": interval}})
        ((study, _),), (note,) = judge_runs([fitted, run], DEFAULTS)
        assert note.endswith(f"adds to it: {added}.")
        (joined,) = study.arms["Aligned"].runs.values()
        assert ("cosine" in joined.record.similarity_interval) == (option == 1)
        assert joined.record.similarity["cka"] == matrix


def test_transfer_of_another_checkpoint_does_not_count(tmp_path: Path) -> None:
    runs = [make(tmp_path / way, way, 0, {"shifted": RISES}) for way in ("standard", "shared")]
    path = runs[0] / "transfer.json"
    path.write_text(path.read_text().replace(f'"model": "{runs[0]}"', '"model": "checkpoints/epoch=003.ckpt"'))
    ((_, found),), _ = judge_runs(runs, DEFAULTS)
    (finding,) = [finding for finding in found if finding.claim.name == "transfer-shift"]
    assert "epoch=003.ckpt" in finding.why


def test_a_seed_counts_once(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / name, "standard", 0, {"accuracy": accuracy}) for name, accuracy in (("a", FALLS), ("b", RISES))
    ]
    ((_, found),), notes = judge_runs(runs, DEFAULTS)
    (finding,) = [finding for finding in found if finding.claim.name == "accuracy-rises"]
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(-0.1)
    assert "is passed over" in notes[0]
    assert str(runs[0]) in notes[0]


def test_runs_without_a_known_seed_are_not_paired(tmp_path: Path) -> None:
    runs = []
    for number in range(6):
        way = "standard" if number < 3 else "shared"
        run = make(tmp_path / str(number), way, number, {"accuracy": wiggle(LATE)(number)})
        config = run / "config.yaml"
        config.write_text(config.read_text().replace(f"seed_everything: {number}", "seed_everything: null"))
        runs.append(run)
    ((_, found),), _ = judge_runs(runs, DEFAULTS)
    (finding,) = [finding for finding in found if finding.claim.name == "last-layer"]
    assert finding.estimate is not None
    assert finding.estimate.basis == "3 and 3 seeds"


def test_runs_that_did_not_measure_it_are_told(tmp_path: Path) -> None:
    def every_second(seed: int) -> Facts:
        return {"accuracy": wiggle(RISES)(seed)} if seed % 2 == 0 else {}

    (finding,) = findings(tmp_path, {"standard": every_second}, "accuracy-rises", seeds=5)
    assert finding.estimate is not None
    assert (finding.estimate.basis, finding.why) == ("3 seeds", "2 of 5 runs did not measure it")


def test_what_was_never_trained_is_passed_over(tmp_path: Path) -> None:
    runs = [make(tmp_path / str(step), "shared", 0, {"step": step, "accuracy": RISES}) for step in (0, 30)]
    ((study, _),), notes = judge_runs(runs, DEFAULTS)
    assert [run.directory for arm in study.arms.values() for run in arm.runs.values()] == runs[1:]
    assert notes == [f"{runs[0]} is passed over: it neither trained a model nor read a checkpoint."]
    with pytest.raises(UserError, match="no finished run"):
        judge_runs(runs[:1], DEFAULTS)


def test_an_evaluation_adds_to_the_run_whose_checkpoint_it_read(tmp_path: Path) -> None:
    fitted = make(tmp_path / "fitted", "shared", 0, {"accuracy": RISES})
    facts = {"step": 0, "exits": 0.5, "ckpt_path": str(fitted / "checkpoints/last.ckpt")}
    for accuracy, added in ((RISES, {"accuracy-rises", "parameters-saved"}), (FALLS, {"accuracy-rises"})):
        evaluated = make(tmp_path / str(accuracy), "shared", 0, {**facts, "accuracy": accuracy})
        ((study, found),), (note,) = judge_runs([fitted, evaluated], DEFAULTS)
        assert [run.directory for arm in study.arms.values() for run in arm.runs.values()] == [fitted]
        values = {finding.claim.name: finding.estimate.value for finding in found if finding.estimate}
        assert values.keys() == added
        assert values["accuracy-rises"] == pytest.approx(-0.1), "what the run recorded itself stays"
        assert ("adds to it" if accuracy is RISES else "is passed over") in note


def test_transfer_measured_otherwise_is_not_compared(tmp_path: Path) -> None:
    runs = [make(tmp_path / way, way, 0, {"shifted": RISES}) for way in ("standard", "shared")]
    path = runs[0] / "transfer.json"
    path.write_text(path.read_text().replace('"strength": 1.0', '"strength": 2.0'))
    ((_, found),), _ = judge_runs(runs, DEFAULTS)
    (finding,) = [finding for finding in found if finding.claim.name == "transfer-shift"]
    assert "with other shifts" in finding.why


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Verdicts move with the limits, whatever they are the status is 0, and markdown has the published numbers."""
    facts = {"standard": wiggle(LATE), "shared": wiggle(WORSE, 0.002)}
    runs = [
        str(make(tmp_path / f"{way}{seed}", way, seed, {"accuracy": of(seed)}))
        for way, of in facts.items()
        for seed in range(3)
    ]
    verdicts = {}
    for limit in ("0.001", "0.05"):
        output = tmp_path / f"{limit}.md"
        assert main(["claims", *runs, "--last-layer-loss", limit, "--output", str(output)]) == 0
        (row,) = [line for line in output.read_text().splitlines() if line.startswith("| last-layer |")]
        verdicts[limit] = row.split(" | ")[5]
        assert "0.006 on ImageNet-1K" in row
        assert f"≤ {limit}" in row
    assert verdicts == {"0.001": "does not hold", "0.05": "holds"}
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["A", "LastLayer"] in rows
    assert ["B", "Aligned"] in rows
    assert [row[1:4] for row in rows if row[:1] == ["last-layer"]] == [["A", "less", "B"]] * 2
    assert "…" not in printed.replace(" … ", ""), "no name is cut off"
    assert "no run of SeparateHeads" in printed.replace("\n", " ")
    assert "no correction is made" in printed.replace("\n", " ")


def test_refusals(tmp_path: Path) -> None:
    run = make(tmp_path / "run", "standard", 0)
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"expected .*config.yaml to tell the run's model"):
        judge_runs([run], DEFAULTS)
    with pytest.raises(UserError, match="which is no directory"):
        judge_runs([tmp_path / "nowhere"], DEFAULTS)
    assert main(["claims", str(run), "--output", "claims.txt"]) == 2
    for option in ("--epsilon", "--absolute-epsilon"):
        assert main(["claims", str(run), option, "1.5"]) == 2
