"""`layersim claims`: on synthetic runs each claim has a case that holds, one that must fail and one that stays open."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import ArrayLike
from scipy import stats

from layersim.__main__ import main
from layersim.errors import UserError
from layersim.report.claims import CLAIMS, LIMITS, judge_runs
from layersim.report.claims.claim import Finding
from layersim.report.claims.estimates import Reading, difference, estimate, shares
from layersim.report.exits import write_exit_report
from layersim.report.records import LayerRecord, append_record
from layersim.report.transfer import TransferReport, write_transfer_report
from tests.report.test_exits import report as exit_report

DEFAULTS = {name: default for name, (default, _) in LIMITS.items()}
WAYS: dict[str, dict[str, Any]] = {
    "standard": {"objective": {"class_path": "layersim.objectives.LastLayer"}},
    "shared": {"objective": {"class_path": "layersim.Aligned", "init_args": {"weights": "linear"}}},
    "separate": {
        "objective": {"class_path": "layersim.Aligned", "init_args": {"weights": "uniform"}},
        "head": {"class_path": "layersim.SeparateHeads", "init_args": {}},
    },
}
LAYERS = np.arange(4)
APART = np.abs(LAYERS[:, None] - LAYERS)
Facts = dict[str, Any]
"""Fields of a record, `exits` (the share of parameters saved), `shifted` or `probed` (accuracies by layer)."""
Way = Callable[[int], Facts]
"""From the seed."""


def make(
    directory: Path, way: str, seed: int, facts: Facts | None = None, *, lr: float = 0.1, task: str = "classification"
) -> Path:
    """A finished run of four layers."""
    told = dict(facts or {})
    saved, shifted, probed = (told.pop(key, None) for key in ("exits", "shifted", "probed"))
    backbone = {"class_path": "layersim.TransformersBackbone", "init_args": {"name_or_path": "tiny", "task": task}}
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": 3},
        "model": {"backbone": backbone, "optimizer": {"init_args": {"lr": lr}}, **WAYS[way]},
        "data": {"class_path": "layersim.data.Digits", "init_args": {"num_workers": seed, "seed": 0}},
        "experiment": way,
        "ckpt_path": told.pop("ckpt_path", None),
    }
    values: Facts = {"epoch": 2, "step": 30, "stage": "validate", "layers": 4, "samples": 1000}
    append_record(directory / "layers.jsonl", LayerRecord(**(values | told)))
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    if saved is not None:
        parameters = {"model": 100, "head": 10, "separate_heads": 130, "share_saved": saved}
        write_exit_report(directory, exit_report(parameters=parameters))
    if shifted is not None or probed is not None:
        transfer: Facts = {"model": str(directory), "layers": 4, "split": "val", "data": {}, "samples": 1000}
        steps = {} if shifted is None else {"noise": [{"strength": 1.0, "accuracy": shifted}]}
        probe = {"data": {}, "classes": 2, "train_samples": 9, "samples": 500, "penalty": [1.0] * 4, "accuracy": probed}
        report = TransferReport(**transfer, accuracy=shifted, shifts=steps, probe=None if probed is None else probe)
        write_transfer_report(directory, report)
    return directory


def findings(root: Path, ways: dict[str, Way], name: str, seeds: int = 3, **options: Any) -> list[Finding]:
    """What the claim comes to for runs of these ways, three seeds each."""
    runs = [
        make(root / f"{way}-{seed}", way, seed, of(seed), **options)
        for way, of in ways.items()
        for seed in range(seeds)
    ]
    ((_, found),), _ = judge_runs(runs, DEFAULTS)
    return [finding for finding in found if finding.claim.name == name]


def wiggle(values: ArrayLike, size: float = 0.001) -> Callable[[int], list[float]]:
    """The values, each off by at most `size`, differently for each seed."""
    return lambda seed: (np.asarray(values) + size * np.cos(2.1 * seed + np.arange(np.size(values)) ** 2)).tolist()


def field(key: str, values: ArrayLike, size: float = 0.001) -> Way:
    return lambda seed: {key: wiggle(values, size)(seed)}


def cosine(slope: float, size: float = 0.001) -> Way:
    """Falls by `slope` a layer."""
    return lambda seed: {"similarity": {"cosine": (1 - APART * (slope + size * (seed - 1))).tolist()}}


def two_measures(follows: float, size: float) -> Way:
    def facts(seed: int) -> Facts:
        noise = np.random.default_rng(seed).normal(size=(4, 4))
        nearness = 1 - 0.2 * APART
        return {"similarity": {"cosine": nearness.tolist(), "cka": (follows * nearness + size * noise).tolist()}}

    return facts


def probability(values: ArrayLike, size: float = 0.001) -> Way:
    def facts(seed: int) -> Facts:
        fixed = {"samples": 9, "centering": "samples", "cosine_rises": 1.0, "path_over_chord": 1.0}
        fixed |= {"cosine_cka": {"pearson": 1.0, "spearman": 1.0}, "target_probability_rises": 1.0}
        lists = {"cosine": 4, "cosine_rises_by_step": 3, "angle": 2, "distance_to_segment": 4, "skip_over_residual": 3}
        by_layer = {key: [0.5] * count for key, count in (lists | {"target_probability_rises_by_step": 3}).items()}
        return {"progression": fixed | by_layer | {"target_probability": wiggle(values, size)(seed)}}

    return facts


def saturation(*counts: int, moved: int = 1) -> Way:
    """Counts by layer, some of the first layer's moved to the last by the seed."""
    return lambda seed: {"saturation": [counts[0] - moved * seed, *counts[1:3], counts[3] + moved * seed]}


def exits(middle: float, size: float = 0.001) -> Way:
    def facts(seed: int) -> Facts:
        curve = {"threshold": [0.0, 0.5, None], "mean_exit_layer": [1.0, 2.5, 4.0]}
        return {"exit_curve": curve | {"accuracy": [0.5, middle + size * math.cos(3 * seed), 0.9]}}

    return facts


def fixed(**facts: Any) -> Way:
    return lambda seed: facts


SHALLOW, DEEP = saturation(500, 400, 90, 10), saturation(9, 9, 9, 973)
SPREAD, HALVES = saturation(300, 300, 300, 100, moved=2), saturation(800, 99, 91, 10)
UNSURE = {"standard": saturation(500, 9, 9, 482), "shared": saturation(500, 10, 10, 480, moved=20)}
RISES, FALLS, FLAT, HALF = [0.2, 0.5, 0.7, 0.8], [0.2, 0.7, 0.5, 0.8], [0.2, 0.5, 0.5, 0.8], [0.5] * 4
LATE, EARLY, WORSE = [0.1, 0.1, 0.5, 0.97], [0.5, 0.9, 0.96, 0.97], [0.05, 0.1, 0.4, 0.96]
CASES: list[tuple[str, str, dict[str, Way]]] = [
    ("similarity-rises", "holds", {"standard": cosine(0.2)}),
    ("similarity-rises", "does not hold", {"standard": cosine(-0.2)}),
    ("similarity-rises", "cannot tell", {"standard": cosine(0.0, 0.05)}),
    ("cosine-follows-cka", "holds", {"shared": two_measures(1, 0.01)}),
    ("cosine-follows-cka", "does not hold", {"shared": two_measures(-1, 0.01)}),
    ("cosine-follows-cka", "cannot tell", {"shared": two_measures(0, 1)}),
    ("accuracy-rises", "holds", {"separate": field("accuracy", RISES)}),
    ("accuracy-rises", "does not hold", {"separate": field("accuracy", FALLS)}),
    ("accuracy-rises", "cannot tell", {"separate": field("accuracy", FLAT, 0.03)}),
    ("probability-rises", "holds", {"shared": probability(RISES)}),
    ("probability-rises", "does not hold", {"shared": probability(FALLS)}),
    ("probability-rises", "cannot tell", {"shared": probability(FLAT, 0.03)}),
    ("shallow-layers", "holds", {"standard": field("accuracy", LATE), "shared": field("accuracy", EARLY)}),
    ("shallow-layers", "does not hold", {"standard": field("accuracy", EARLY), "shared": field("accuracy", EARLY)}),
    ("shallow-layers", "cannot tell", {"standard": field("accuracy", LATE), "shared": field("accuracy", HALF, 0.5)}),
    ("last-layer", "holds", {"standard": field("accuracy", LATE), "shared": field("accuracy", EARLY, 0.002)}),
    ("last-layer", "does not hold", {"standard": field("accuracy", LATE), "shared": field("accuracy", FLAT)}),
    ("last-layer", "cannot tell", {"standard": field("accuracy", LATE), "shared": field("accuracy", WORSE, 0.01)}),
    ("more-saturation", "holds", {"standard": DEEP, "shared": SHALLOW}),
    ("more-saturation", "does not hold", {"standard": HALVES, "shared": SPREAD}),
    ("more-saturation", "cannot tell", UNSURE),
    ("earlier-saturation", "holds", {"standard": DEEP, "shared": SHALLOW}),
    ("earlier-saturation", "does not hold", {"standard": HALVES, "shared": SPREAD}),
    ("earlier-saturation", "cannot tell", UNSURE),
    ("effective-depth", "holds", {"standard": field("accuracy", LATE), "shared": field("accuracy", EARLY)}),
    ("effective-depth", "does not hold", {"standard": field("accuracy", EARLY), "shared": field("accuracy", LATE)}),
    ("effective-depth", "cannot tell", {"standard": field("accuracy", RISES), "shared": field("accuracy", RISES)}),
    ("one-head-on-par", "holds", {"separate": exits(0.8), "shared": exits(0.82, 0.002)}),
    ("one-head-on-par", "does not hold", {"separate": exits(0.8), "shared": exits(0.7, 0.002)}),
    ("one-head-on-par", "cannot tell", {"separate": exits(0.8), "shared": exits(0.79, 0.1)}),
    ("parameters-saved", "holds", {"shared": fixed(exits=0.784)}),
    ("parameters-saved", "does not hold", {"shared": fixed(exits=0.01)}),
    ("parameters-saved", "cannot tell", {"shared": fixed()}),
    ("transfer-shift", "holds", {"standard": field("shifted", LATE), "shared": field("shifted", EARLY, 0.002)}),
    ("transfer-shift", "does not hold", {"standard": field("shifted", FALLS), "shared": field("shifted", FLAT)}),
    ("transfer-shift", "cannot tell", {"standard": field("shifted", FLAT), "shared": field("shifted", FLAT, 0.05)}),
    ("transfer-task", "holds", {"standard": field("probed", LATE), "shared": field("probed", EARLY, 0.002)}),
    ("transfer-task", "does not hold", {"standard": field("probed", FALLS), "shared": field("probed", FLAT)}),
    ("transfer-task", "cannot tell", {"standard": field("probed", FLAT), "shared": field("probed", FLAT, 0.05)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "verdict", "ways"), CASES, ids=[f"{name}: {verdict}" for name, verdict, _ in CASES])
def test_verdicts(name: str, verdict: str, ways: dict[str, Way], tmp_path: Path) -> None:
    (finding,) = findings(tmp_path, ways, name)
    assert finding.verdict == verdict, finding
    assert finding.estimate is None or finding.estimate.basis.startswith("3 seeds")
    assert verdict != "cannot tell" or finding.estimate is None or finding.estimate.low <= finding.limit  # type: ignore[operator]


def test_each_claim_has_a_case_of_each_verdict() -> None:
    assert sorted((name, verdict) for name, verdict, _ in CASES) == sorted(
        (claim.name, verdict) for claim in CLAIMS for verdict in ("holds", "does not hold", "cannot tell")
    )


def test_numbers_are_what_they_say(tmp_path: Path) -> None:
    """With runs that vary by nothing but known numbers."""

    def number(name: str, ways: dict[str, Way]) -> float:
        (finding,) = findings(tmp_path / name, ways, name, seeds=1)
        assert finding.estimate is not None
        return finding.estimate.value

    late, early = fixed(accuracy=LATE, exit_curve=curve(0.8)), fixed(accuracy=EARLY, exit_curve=curve(0.7))
    assert number("similarity-rises", {"standard": cosine(0.2, 0)}) == pytest.approx(-0.2)
    assert number("accuracy-rises", {"standard": fixed(accuracy=FALLS)}) == pytest.approx(0.2)
    assert number("shallow-layers", {"standard": late, "shared": early}) == pytest.approx(0.7 - 0.1)
    assert number("last-layer", {"standard": late, "shared": fixed(accuracy=FLAT)}) == pytest.approx(0.17)
    two = {"standard": saturation(0, 0, 100, 900), "shared": saturation(500, 400, 90, 10)}
    assert number("more-saturation", two) == pytest.approx(0.99 - 0.1)
    assert number("earlier-saturation", two) == pytest.approx(3.9 - (500 + 800 + 270 + 40) / 1000)
    # 0.95 is reached between 0.5 at 3 and 0.97 at 4, and between 0.9 at 2 and 0.96 at 3
    depths = 3 + 0.45 / 0.47, 2 + 0.05 / 0.06
    assert number("effective-depth", {"standard": late, "shared": early}) == pytest.approx(depths[0] - depths[1])
    # at layers 2 and 3 of 4 the curves go through (1, 0.5), (2.5, middle), (4, 0.9)
    at_two, at_three = (0.1 * (2 - 1) / 1.5, 0.1 * (4 - 3) / 1.5)
    assert number("one-head-on-par", {"separate": late, "shared": early}) == pytest.approx(max(at_two, at_three))
    noise = two_measures(1, 0.3)(0)["similarity"]
    upper = np.triu_indices(4, 1)
    expected = stats.pearsonr(*(np.array(noise[measure])[upper] for measure in ("cosine", "cka"))).statistic
    assert number("cosine-follows-cka", {"standard": two_measures(1, 0.3)}) == pytest.approx(expected)


def curve(middle: float) -> Facts:
    return {"threshold": [0.0, 0.5, None], "mean_exit_layer": [1.0, 2.5, 4.0], "accuracy": [0.5, middle, 0.9]}


def of_seeds(values: ArrayLike) -> dict[int, Reading]:
    return {seed: Reading(np.atleast_1d(np.float64(value))) for seed, value in enumerate(np.asarray(values))}


def test_intervals_over_seeds_against_scipy() -> None:
    first, second = [0.1, 0.4, 0.35, 0.2], [0.3, 0.1, 0.25, 0.1]
    one = estimate(list(of_seeds(first).values()))
    assert (one.low, one.high) == pytest.approx(stats.ttest_1samp(first, 0).confidence_interval(0.95))
    paired = difference(of_seeds(first), of_seeds(second))
    assert (paired.low, paired.high) == pytest.approx(stats.ttest_rel(first, second).confidence_interval(0.95))
    apart = difference(of_seeds(first), {seed + 9: value for seed, value in of_seeds(second[:3]).items()})
    expected = stats.ttest_ind(first, second[:3], equal_var=False).confidence_interval(0.95)
    assert (apart.low, apart.high) == pytest.approx(tuple(expected))
    assert apart.basis == "4 and 3 seeds"


def test_intervals_over_samples_against_scipy_and_a_published_example() -> None:
    expected = stats.binomtest(56, 70).proportion_ci(0.95, method="wilson")
    share = shares([56 / 70], 70)
    assert share.low is not None
    assert share.high is not None
    assert (share.low[0], share.high[0]) == pytest.approx((expected.low, expected.high))
    # Newcombe 1998, Statistics in Medicine 17, table II, method 10, 56/70 − 48/80
    found = difference({0: share}, {0: shares([48 / 80], 80)})
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert "another seed may differ" in found.why


def test_the_greatest_of_many_is_no_evidence_by_itself() -> None:
    """Where nothing falls, the greatest of 11 noisy drops seems to, unless it is judged as the greatest of 11."""
    rng = np.random.default_rng(0)
    wrong, naive, trials = 0, 0, 2000
    for _ in range(trials):
        drops = rng.normal(size=(5, 11))
        found = estimate([Reading(row) for row in drops])
        assert found.low is not None
        wrong += found.low > 0
        alone = estimate([Reading(row[[drops.mean(axis=0).argmax()]]) for row in drops])
        assert alone.low is not None
        naive += alone.low > 0
    assert wrong / trials < 0.05 < naive / trials


def test_seeds_that_agree_exactly_are_no_certainty() -> None:
    """Their spread is zero by chance: the samples' interval stands in, and where there is none, nothing can be told."""
    same = [shares([0.9], 50) for _ in range(3)]
    found = estimate(same)
    assert same[0].low is not None
    assert found.low == pytest.approx(same[0].low[0])
    bare = estimate([Reading(np.array([0.9]))] * 3)
    assert (bare.low, bare.high, bare.why) == (None, None, "all seeds gave the same number, whose spread is unknown")


def test_one_run_of_each_is_judged_over_its_samples(tmp_path: Path) -> None:
    ways = {"standard": fixed(accuracy=LATE), "shared": fixed(accuracy=EARLY)}
    (finding,) = findings(tmp_path, ways, "shallow-layers", seeds=1)
    assert (finding.verdict, finding.why) == ("holds", "over the samples of one run; another seed may differ")


def test_tokens_are_no_independent_samples(tmp_path: Path) -> None:
    ways = {"standard": fixed(accuracy=LATE), "shared": fixed(accuracy=EARLY)}
    (finding,) = findings(tmp_path, ways, "shallow-layers", seeds=1, task="language-modeling")
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
