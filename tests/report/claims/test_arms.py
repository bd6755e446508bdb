"""`layersim claims`: which runs make an arm, what is told of the others, and the command."""

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from layersim.__main__ import main
from layersim.commands.claims import claims
from layersim.errors import UserError
from layersim.report.claims import ARMS, LIMITS, Arms, Verdict, judge, markdown, read_arms
from layersim.report.claims.verdicts import _plain
from tests.report.claims.synthetic import (
    APART,
    EARLY,
    FALLS,
    LATE,
    RISES,
    WORSE,
    Facts,
    fixed,
    make,
    verdicts,
    wiggle,
)
from tests.report.test_exits import report as exit_report


def verdict_on(arms: Arms, name: str) -> Verdict:
    (found,) = [verdict for verdict in judge(arms) if verdict.claim.name == name]
    return found


def directories(arms: Arms) -> dict[str, list[Path]]:
    return {arm: [run.directory for run in runs.values()] for arm, runs in arms.runs.items()}


def test_one_run_of_each_is_judged_over_its_samples(tmp_path: Path) -> None:
    ways = {"standard": fixed(accuracy=LATE), "aligned": fixed(accuracy=EARLY)}
    (found,) = verdicts(tmp_path, ways, "shallow-layers", seeds=1)
    assert (found.answer, found.why) == ("holds", "over the samples of one run; another seed may differ")


def test_tokens_are_no_independent_samples(tmp_path: Path) -> None:
    ways = {"standard": fixed(accuracy=LATE, unit="tokens"), "aligned": fixed(accuracy=EARLY, unit="tokens")}
    (found,) = verdicts(tmp_path, ways, "shallow-layers", seeds=1)
    assert (found.answer, found.why) == ("cannot tell", "no interval from one run")


def test_recorded_intervals_of_similarity_count_for_one_run(tmp_path: Path) -> None:
    similarity = (1 - 0.2 * APART).tolist()
    for width, verdict in ((0.01, "holds"), (0.4, "cannot tell")):
        ends = {end: (1 - 0.2 * APART + side * width).tolist() for end, side in (("low", -1), ("high", 1))}
        facts = {"similarity": {"cosine": similarity}, "intervals": {"cosine": {"confidence": 0.95, **ends}}}
        (found,) = verdicts(tmp_path / str(width), {"standard": fixed(**facts)}, "similarity-rises", seeds=1)
        assert found.answer == verdict
        assert found.estimate is not None
        assert found.estimate.high == pytest.approx(-0.2 + math.sqrt(2) * width)


def test_parameters_are_those_that_training_counted(tmp_path: Path) -> None:
    run = make(tmp_path / "run", "aligned", 0)
    (run / "environment.json").write_text(json.dumps({"parameters": {"share_saved": 0.25}}))
    found = verdict_on(read_arms({"aligned": [run]}), "parameters-saved")
    assert found.answer == "holds"
    assert found.estimate is not None
    assert found.estimate.value == 0.25


def test_an_arm_is_runs_alike_but_for_their_seed(tmp_path: Path) -> None:
    runs = [make(tmp_path / f"{lr}", "aligned", 0, {"accuracy": RISES}, lr=lr) for lr in (0.1, 0.2)]
    with pytest.raises(UserError, match=r"--aligned: expected runs alike .* differ in model.optimizer.lr: judge them"):
        read_arms({"aligned": [runs[0], make(tmp_path / "1", "aligned", 1, {"accuracy": RISES}, lr=0.2)]})
    other = make(tmp_path / "objective", "separate", 1, {"accuracy": RISES})
    with pytest.raises(UserError, match=r"--aligned: .* differ in model.head"):
        read_arms({"aligned": [runs[0], other]})


def test_arms_are_of_one_model_on_the_same_data(tmp_path: Path) -> None:
    """What else differs is told: each way may be trained as suits it best."""
    standard = make(tmp_path / "standard", "standard", 0, {"accuracy": LATE})
    tuned = make(tmp_path / "tuned", "aligned", 0, {"accuracy": EARLY}, lr=0.2)
    arms = read_arms({"standard": [standard], "aligned": [tuned]})
    assert arms.notes == ["standard and aligned differ in model.optimizer.lr."]
    assert verdict_on(arms, "shallow-layers").of == "aligned less standard"
    fewer = make(tmp_path / "fewer", "aligned", 0, {"accuracy": EARLY, "samples": 10})
    with pytest.raises(UserError, match=r"--standard, --aligned: expected one model on the same .* differ in samples:"):
        read_arms({"standard": [standard], "aligned": [fewer]})


def test_all_ways_to_train_one_head_are_set_beside_the_standard(tmp_path: Path) -> None:
    runs = {arm: [make(tmp_path / arm, "aligned", 0, {"accuracy": EARLY})] for arm in ("aligned", "alternating")}
    arms = read_arms({"standard": [make(tmp_path / "standard", "standard", 0, {"accuracy": LATE})], **runs})
    of = [found.of for found in judge(arms) if found.claim.name == "last-layer"]
    assert of == ["standard less aligned", "standard less alternating"]


def test_another_split_is_another_seed(tmp_path: Path) -> None:
    """Runs whose split is drawn anew are paired by it, transfer included."""
    runs = {
        way: [
            make(tmp_path / f"{way}{seed}", way, 0, {"accuracy": values, "shifted": values}, data_seed=seed)
            for seed in range(3)
        ]
        for way, values in (("standard", LATE), ("aligned", EARLY))
    }
    for run in (run for of_way in runs.values() for run in of_way):
        path = run / "transfer.json"
        section = {"class_path": "layersim.data.Digits", "init_args": {"seed": int(run.name[-1])}}
        path.write_text(path.read_text().replace('"data": {}', f'"data": {json.dumps(section)}'))
    arms = read_arms(runs)
    assert arms.notes == []
    assert list(arms.runs["standard"]) == ["0", "0 (data 1)", "0 (data 2)"]
    found = verdict_on(arms, "transfer-shift")
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(0.0)
    assert found.estimate.basis == "3 seeds, paired"


def test_runs_that_stopped_early_are_passed_over(tmp_path: Path) -> None:
    whole, cut = (
        make(tmp_path / str(epoch), "standard", epoch, {"accuracy": RISES, "epoch": epoch}) for epoch in (2, 0)
    )
    arms = read_arms({"standard": [whole, cut]})
    assert directories(arms) == {"standard": [whole]}
    assert arms.notes == [f"{cut} is passed over: its last validation is of epoch 1 of 3."]
    stopped = make(tmp_path / "steps", "standard", 5, {"accuracy": RISES, "epoch": 0}, max_steps=30)
    arms = read_arms({"standard": [stopped]})
    assert (list(arms.runs["standard"]), arms.notes) == (["5"], [])


def test_directories_without_a_validation_are_passed_over(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", "standard", 0, {"accuracy": RISES})
    tested = make(tmp_path / "tested", "standard", 1, {"accuracy": RISES, "stage": "test"})
    killed = make(tmp_path / "killed", "standard", 2, {"accuracy": RISES})
    (killed / "layers.jsonl").unlink()
    arms = read_arms({"standard": [whole, tested, killed]})
    assert arms.notes == [f"{run} is passed over: it holds no validation." for run in (tested, killed)]


def test_evaluations_are_known_by_the_seed_of_the_training(tmp_path: Path) -> None:
    fitted, evaluated = [], []
    for seed in range(3):
        fitted.append(make(tmp_path / f"fitted{seed}", "aligned", seed, {"shifted": RISES}))
        facts = {"step": 0, "ckpt_path": str(fitted[-1] / "checkpoints/last.ckpt"), "accuracy": wiggle(RISES)(seed)}
        evaluated.append(make(tmp_path / f"evaluated{seed}", "aligned", 0, facts))
    arms = read_arms({"aligned": evaluated})
    assert (list(arms.runs["aligned"]), arms.notes) == (["0", "1", "2"], [])
    assert [run.transfer is not None for run in arms.runs["aligned"].values()] == [True] * 3, "of the training's run"
    both = read_arms({"aligned": [fitted[0], *evaluated]})
    assert directories(both) == {"aligned": [fitted[0], *evaluated[1:]]}, "a training stands before its evaluation"
    assert both.notes == [f"{evaluated[0]} is passed over: {fitted[0]} has its seed."]


def test_processes_count_with_the_batch(tmp_path: Path) -> None:
    """Four processes with a quarter of the batch take the same steps; with the same batch they take others."""
    runs = [make(tmp_path / str(seed), "standard", seed, {"accuracy": RISES}) for seed in range(3)]
    for run, (batch, processes) in zip(runs, ((64, 1), (16, 4), (64, 4)), strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"]["init_args"]["batch_size"] = batch
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "environment.json").write_text(json.dumps({"processes": str(processes)}))
    assert list(read_arms({"standard": runs[:2]}).runs["standard"]) == ["0", "1"]
    with pytest.raises(UserError, match=r"differ in data\.batch_size"):
        read_arms({"standard": runs})


def test_exits_by_other_rules_are_not_compared(tmp_path: Path) -> None:
    runs = {way: [make(tmp_path / way, way, 0, {"exits": 0.5})] for way in ("separate", "aligned")}
    for (run,), policy in zip(runs.values(), ("entropy", "confidence"), strict=True):
        curve = {"threshold": [0.1, 0.9], "mean_exit_layer": [1.0, 4.0], "accuracy": [0.5, 0.9]}
        bands = {f"{key}_interval": [[0.0, 4.0]] * 2 for key in ("mean_exit_layer", "accuracy")}
        exit_report(policy=policy, curve=curve | bands).write(run)
    assert "different policies" in verdict_on(read_arms(runs), "one-head-on-par").why


@pytest.mark.parametrize(
    ("written", "instead", "why"),
    [
        ('"model": "RUN"', '"model": "checkpoints/epoch=003.ckpt"', "epoch=003.ckpt"),
        ('"strength": 1.0', '"strength": 2.0', "with other shifts"),
    ],
)
def test_transfer_is_compared_of_the_last_state_under_the_same_shifts(
    tmp_path: Path, written: str, instead: str, why: str
) -> None:
    runs = {way: [make(tmp_path / way, way, 0, {"shifted": RISES})] for way in ("standard", "aligned")}
    (run,) = runs["standard"]
    path = run / "transfer.json"
    path.write_text(path.read_text().replace(written.replace("RUN", str(run)), instead))
    assert why in verdict_on(read_arms(runs), "transfer-shift").why


def test_a_seed_counts_once(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / name, "standard", 0, {"accuracy": accuracy}) for name, accuracy in (("a", FALLS), ("b", RISES))
    ]
    arms = read_arms({"standard": runs})
    found = verdict_on(arms, "accuracy-rises")
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(-0.1)
    assert arms.notes == [f"{runs[0]} is passed over: {runs[1]} has its seed."]


def test_runs_without_a_known_seed_are_not_paired(tmp_path: Path) -> None:
    runs: dict[str, list[Path]] = {"standard": [], "aligned": []}
    for number in range(6):
        way = "standard" if number < 3 else "aligned"
        runs[way].append(make(tmp_path / way / str(number % 3), way, number, {"accuracy": wiggle(LATE)(number)}))
        config = runs[way][-1] / "config.yaml"
        config.write_text(config.read_text().replace(f"seed_everything: {number}", "seed_everything: null"))
    found = verdict_on(read_arms(runs), "last-layer")
    assert found.estimate is not None
    assert found.estimate.basis == "3 and 3 seeds"


def test_runs_that_did_not_measure_it_are_told(tmp_path: Path) -> None:
    def every_second(seed: int) -> Facts:
        return {"accuracy": wiggle(RISES)(seed)} if seed % 2 == 0 else {}

    (found,) = verdicts(tmp_path, {"standard": every_second}, "accuracy-rises", seeds=5)
    assert found.estimate is not None
    assert (found.estimate.basis, found.why) == ("3 seeds", "2 of 5 runs did not measure it")


def test_what_was_never_trained_is_passed_over(tmp_path: Path) -> None:
    runs = [make(tmp_path / str(step), "aligned", 0, {"step": step, "accuracy": RISES}) for step in (0, 30)]
    arms = read_arms({"aligned": runs})
    assert directories(arms) == {"aligned": runs[1:]}
    assert arms.notes == [f"{runs[0]} is passed over: it neither trained a model nor read a checkpoint."]
    with pytest.raises(UserError, match="no finished run"):
        read_arms({"aligned": runs[:1]})


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Verdicts move with the limits, whatever they are the status is 0, and markdown has the published numbers."""
    facts = {"standard": wiggle(LATE), "aligned": wiggle(WORSE, 0.002)}
    runs = {
        way: [str(make(tmp_path / f"{way}{seed}", way, seed, {"accuracy": of(seed)})) for seed in range(3)]
        for way, of in facts.items()
    }
    answers = {}
    for limit in ("0.001", "0.05"):
        output = tmp_path / f"{limit}.md"
        given = ["--standard", *runs["standard"], "--aligned", f"{tmp_path}/aligned*"]
        assert main(["claims", *given, "--last-layer-loss", limit, "--output", str(output)]) == 0
        (row,) = [line for line in output.read_text().splitlines() if line.startswith("| last-layer |")]
        assert row.split(" | ")[1] == "standard less aligned"
        answers[limit] = row.split(" | ")[5]
        assert "0.006 on ImageNet-1K" in row
        assert f"≤ {limit}" in row
    assert answers == {"0.001": "does not hold", "0.05": "holds"}
    printed = capsys.readouterr().out
    lines = [line.strip() for line in printed.splitlines()]
    assert "standard: LastLayer, seeds 0, 1, 2" in lines
    last = lines.index("last-layer")
    assert lines[last + 1].startswith("standard less aligned  ")
    assert "…" not in printed.replace(" … ", ""), "no name is cut off"
    assert "no run of separate" in printed.replace("\n", " ")
    assert "no correction is made" in printed.replace("\n", " ")


def test_a_directory_is_taken_by_its_very_name_and_patterns_where_there_is_none(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, "aligned", seed, {"accuracy": RISES}) for seed, name in enumerate(("run[1]", "run1"))]
    output = tmp_path / "claims.md"
    for given, seed in ((runs[0], 0), (runs[1], 1), (tmp_path / "run[12]", 1)):
        assert main(["claims", "--aligned", str(given), "--output", str(output)]) == 0
        assert f"seeds {seed}\n" in output.read_text()


def test_the_commands_limits_are_those_of_the_claims() -> None:
    options = inspect.signature(claims).parameters
    assert {name: options[name.replace("-", "_")].default for name in LIMITS} == LIMITS
    assert options.keys() >= ARMS.keys()


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path / "run", "standard", 0)
    with pytest.raises(UserError, match="expected arms among standard, aligned, alternating, separate, got 'shared'"):
        read_arms({"shared": [run]})
    with pytest.raises(
        UserError, match=r"--aligned: expected runs of this arm, got .*, which is one of --standard too"
    ):
        read_arms({"standard": [run], "aligned": [run]})
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"no finished run: .* expected .*config.yaml to tell the run's model"):
        read_arms({"standard": [run]})
    with pytest.raises(UserError, match="which is no directory"):
        read_arms({"standard": [tmp_path / "nowhere"]})
    for words, told in (
        ((), "expected runs to judge"),
        (("--standard", f"{tmp_path}/x*"), "--standard: expected a run's directory, which holds layers.jsonl, got"),
        (("--standard", str(run), "--output", "claims.txt"), "--output: expected"),
        (("--standard", str(run), "--epsilon", "1.5"), "Expected --epsilon at least 0 and at most 1, but got 1.5"),
        (("--standard", str(run), "--absolute-epsilon", "1.5"), "Expected --absolute-epsilon at least 0"),
        (("--standard", str(run), "--drop", "5"), "Expected --drop at least 0 and at most 1, but got 5"),
    ):
        assert main(["claims", *words]) == 2
        assert told in capsys.readouterr().err


def test_planted_names_stand_in_markdown_as_they_are(tmp_path: Path) -> None:
    """In no cell more than one, and nothing of them is markup."""
    planted = "a | b `c` <script> $x_1$ **d** &lt; [e](f)\n# g"
    told = _plain(planted)
    assert told == r"a \| b \`c\` \<script\> \$x\_1\$ \*\*d\*\* \&lt; \[e\](f) \# g"
    runs = [make(tmp_path / str(seed), "aligned", seed, {"accuracy": RISES}) for seed in range(2)]
    arms = replace(read_arms({"aligned": runs}), notes=[planted])
    written = markdown([(arms, judge(arms))])
    assert f"- {told}\n" in written
    assert planted not in written
