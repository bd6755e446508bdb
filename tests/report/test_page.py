import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersim.commands.report import report as write_report
from layersim.errors import UserError
from layersim.report.environment import environment
from layersim.report.page import write_page
from layersim.report.page.run_page import MOST_NUMBERS, thin
from layersim.report.page.seeds import differences, group_runs, mean_interval
from layersim.report.records import LayerRecord, append_record
from tests.report.recorded import recorded

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"


def record(epoch: int = 0, layers: int = 2, **changes: Any) -> LayerRecord:
    matrix = [[1.0 if i == j else (epoch + 1) / (10 + i + j) for j in range(layers)] for i in range(layers)]
    values: dict[str, Any] = {
        "epoch": epoch,
        "step": 10 * (epoch + 1),
        "stage": "validate",
        "layers": layers,
        "samples": 80,
        "accuracy": [(layer + 1 + epoch / 10) / (layers + 1) for layer in range(layers)],
        "loss": [2.25 / (layer + 1) for layer in range(layers)],
        "saturation": [80 - layers + 1, *[1] * (layers - 1)],
        "saturated_early": 0.75,
        "mean_saturation_layer": 1.25,
        "effective_depth": layers,
        "similarity": {"cosine": matrix, "cka": matrix},
    }
    return recorded(**(values | changes))


def make_run(directory: Path, *records: LayerRecord, config: str = "") -> Path:
    for one in records:
        append_record(directory / "layers.jsonl", one)
    (directory / "config.yaml").write_text(config or "experiment: digits\nseed_everything: 0\n")
    return directory


class Reader(HTMLParser):
    """Elements by name, and the text of the tables' cells in their order."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._within: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self._within.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._within.pop() == tag  # what is opened is closed, in order

    def handle_data(self, data: str) -> None:
        for tag in set(self._within):
            self.texts[tag][-1] += data

    @property
    def data(self) -> Any:
        return json.loads(next(text for text in self.texts["script"] if text.startswith("{")))


def test_interval_is_students() -> None:
    mean, half = mean_interval([[1.0, 0.5], [2.0, 0.5], [3.0, 0.5]])
    assert mean.tolist() == [2.0, 0.5]
    assert half == pytest.approx([4.302652729749464 / math.sqrt(3), 0.0], rel=1e-9)  # t(0.975, 2), from tables 4.303
    mean, half = mean_interval([[0.25, 0.75]])
    assert mean.tolist() == [0.25, 0.75]
    assert np.isnan(half).all()


def test_interval_covers_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 0.1, size=(4, 40_000))  # 40 000 layers of 4 runs
    mean, half = mean_interval(draws)
    assert (abs(mean - 0.3) < half).mean() == pytest.approx(0.95, abs=0.005)
    normal = 1.96 * draws.std(axis=0, ddof=1) / 2
    assert (abs(mean - 0.3) < normal).mean() < 0.9  # the control: without Student's factor it is no 95 % interval


def test_runs_are_grouped_by_their_name_less_the_seed_and_by_their_depth() -> None:
    names = ["a", "b-seed1", "a", "b-seed2", "b", "a", "seed3"]
    records = [record(layers=3 if place == 5 else 2) for place in range(7)]
    groups = {group.name: group.members for group in group_runs(names, records)}
    assert groups == {"a (2 layers)": [0, 2], "b": [1, 3, 4], "a (3 layers)": [5], "seed3": [6]}


def test_differences_but_the_seed_are_told() -> None:
    base = {"experiment": "a", "model": {"optimizer": {"lr": 0.1}, "head": None}}
    assert differences([base | {"seed_everything": 0}, base | {"seed_everything": 1, "experiment": "b"}]) == []
    splits: list[dict[str, Any]] = [
        base | {"seed_everything": seed, "data": {"init_args": {"seed": seed, "size": 8}}} for seed in (0, 1)
    ]
    assert differences(splits) == []
    splits[1] |= {"seed_everything": 0}
    assert differences(splits) == [], "the same weights on another split"
    splits[1]["data"]["init_args"]["size"] = 16
    assert differences(splits) == ["their configurations differ in data.init_args.size"]
    other = {"seed_everything": 0, "model": {"optimizer": {"lr": 0.2}, "head": None}}
    assert differences([base | {"seed_everything": 0}, other]) == [
        "their configurations differ in model.optimizer.lr",
        "more than one has the seed 0",
    ]


def test_the_page_holds_every_number_of_the_run(tmp_path: Path) -> None:
    curve: dict[str, list[Any]] = {"threshold": [0.5, None], "mean_exit_layer": [1.0, 2.0], "accuracy": [0.25, 0.75]}
    first = record(accuracy=[0.123456, math.nan], exit_curve=curve)
    run = make_run(tmp_path / "x1", first, record(1), record(stage="test"))
    assert write_page([run], tmp_path / "out" / "page.html") == []
    (drawn,) = Reader(tmp_path / "out" / "page.html").data["runs"]
    assert [each["epoch"] for each in drawn["records"]] == [0, 1]
    assert drawn["first"] == 1
    assert drawn["records"][0]["accuracy"] == [0.1235, None]
    assert drawn["records"][0]["exitCurve"]["threshold"] == [0.5, None]
    assert drawn["records"][1]["similarity"]["cka"] == [[1.0, 0.182], [0.182, 1.0]]
    assert drawn["records"][1]["saturation"] == [79, 1]
    assert drawn["records"][1]["effectiveDepth"] == {"epsilon": 0.01, "layer": 2}


def test_without_the_script_the_last_epoch_stands_in_a_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x1", record(), record(1, accuracy=[0.25, math.nan]))
    write_page([run], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    assert read.texts["caption"] == ["Epoch 1, step 20, 80 samples"]
    assert read.texts["td"] == ["0.250", "2.250", "98.8%", "0.182", "0.182", "nan", "1.125", "1.2%", "1.000", "1.000"]


def test_a_language_model_is_told_in_perplexity_and_tokens(tmp_path: Path) -> None:
    tokens = record(unit="tokens", perplexity=[8.5, 8.0], effective_depth=1, samples=12345)
    runs = [make_run(tmp_path / f"x{seed}", tokens, config=f"seed_everything: {seed}\n") for seed in range(2)]
    write_page(runs[:1], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    facts = dict(zip(read.texts["dt"], read.texts["dd"], strict=True))
    assert (facts["Tokens"], facts["Last layer's perplexity"]) == ("12,345", "8.000")
    assert facts["Best layer's perplexity"] == "8.000 at layer 2"
    assert facts["Effective depth"] == "1 of 2 (epsilon 0.01)"
    assert read.texts["caption"] == ["Epoch 0, step 10, 12,345 tokens"]
    assert read.texts["th"][:4] == ["layer", "perplexity", "accuracy", "loss"]
    (drawn,) = read.data["runs"]
    assert (drawn["records"][0]["perplexity"], drawn["records"][0]["unit"]) == ([8.5, 8.0], "tokens")
    write_page(runs, tmp_path / "both.html")
    both = Reader(tmp_path / "both.html")
    assert both.texts["caption"][0].startswith("Perplexity by layer: mean and 95 % interval")
    assert [group["quantities"]["perplexity"]["mean"] for group in both.data["groups"]] == [[8.5, 8.0]] * 2


def test_summary_reads_the_configuration(tmp_path: Path) -> None:
    config = """
experiment: digits/aligned
seed_everything: 7
model:
  objective: {class_path: layersim.objectives.Aligned, init_args: {weights: uniform, sampled_layers: null}}
  head: layersim.SeparateHeads
  backbone: {class_path: layersim.backbones.TimmBackbone, init_args: {name: vit, num_classes: 10}}
"""
    write_page([make_run(tmp_path / "x1", record(), config=config)], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    facts = dict(zip(read.texts["dt"], read.texts["dd"], strict=True))
    assert facts["Objective"] == "Aligned (weights uniform)"
    assert facts["Head"] == "SeparateHeads"
    assert facts["Backbone"] == "TimmBackbone (name vit)"
    assert (facts["Seed"], facts["Run"], facts["Best layer's accuracy"]) == ("7", "x1", "0.667 at layer 2")
    assert read.texts["h1"] == ["digits/aligned"]
    assert config in read.texts["pre"][0]


def test_several_runs_are_compared_over_their_seeds(tmp_path: Path) -> None:
    def one(name: str, experiment: str, seed: int, *accuracy: float) -> Path:
        config = f"experiment: {experiment}\nseed_everything: {seed}\n"
        return make_run(tmp_path / name, record(accuracy=list(accuracy)), config=config)

    runs = [one("x1", "a", 1, 0.5, 0.8), one("x2", "a", 2, 0.7, 0.8), one("x3", "b", 1, 0.25, 0.5)]
    assert write_page(runs, tmp_path / "page.html") == []
    read = Reader(tmp_path / "page.html")
    half = 12.706204736432095 * 0.1  # t(0.975, 1) s / √2 with s = 0.2 / √2
    assert [group["name"] for group in read.data["groups"]] == ["a", "b"]
    band = read.data["groups"][0]["quantities"]["accuracy"]
    assert band["mean"] == [0.6, 0.8]
    assert band["low"] == pytest.approx([0.6 - half, 0.8], abs=1e-4)
    assert band["high"] == pytest.approx([0.6 + half, 0.8], abs=1e-4)
    assert read.data["groups"][1]["quantities"]["accuracy"]["low"] == [None, None]
    assert read.texts["td"][:4] == ["0.600 ± 1.271", "0.250", "0.800 ± 0.000", "0.500"]
    assert "a (x2)" in read.texts["th"]
    notices = write_page([runs[0], one("x4", "a", 1, 0.5, 0.5)], tmp_path / "page.html")
    assert "the seed 1" in notices[0]
    assert notices == Reader(tmp_path / "page.html").texts["li"]


def test_measures_that_were_not_computed_alike_are_told(tmp_path: Path) -> None:
    ways = [{"cosine": {"centering": way}, "cka": {"batch": 64}} for way in ("samples", "components")]
    runs = [
        make_run(tmp_path / f"x{i}", record(options=options), config=f"experiment: run{i}\n")
        for i, options in enumerate(ways)
    ]
    assert write_page(runs, tmp_path / "page.html") == [
        "cosine was computed in different ways, its numbers do not compare."
    ]
    read = Reader(tmp_path / "page.html")
    facts = [*zip(read.texts["dt"], read.texts["dd"], strict=True)]
    assert [value for name, value in facts if name == "How cosine was computed"] == [
        "centering samples",
        "centering components",
    ]


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    config = f"experiment: {json.dumps(HOSTILE)}\nmodel:\n  head: {json.dumps(HOSTILE)}\n"
    similarity = {HOSTILE: [[1.0, 0.5], [0.5, 1.0]]}
    run = make_run(tmp_path / "x1", record(similarity=similarity), config=config)
    write_page([run, make_run(tmp_path / "x2", record())], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    assert "img" not in read.texts
    assert not [name for name, _ in read.elements if name == "img"]
    assert len(read.texts["script"]) == 2
    assert read.data["runs"][0]["measures"] == [HOSTILE]
    assert HOSTILE in read.texts["h2"]


def test_nothing_is_loaded_and_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    write_page([make_run(tmp_path / "x1", record())], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    loaded = [value for _, attributes in read.elements for name, value in attributes.items() if name in ("src", "href")]
    assert loaded == ["data:,"]
    assert not re.search(r"url\((?!#)|@import", read.texts["style"][0])
    policy = next(a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(read.texts["script"][-1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_a_cut_line_is_told_and_the_rest_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "x1", record(), record(1))
    with (run / "layers.jsonl").open("a") as file:
        file.write(record(2).to_line()[:40])
    write_report(run)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("layers.jsonl: the last line was cut by an interruption and is left out.")
    assert printed[1:] == [f"Page: {run / 'report.html'}"]
    read = Reader(run / "report.html")
    assert read.texts["li"] == printed[:1]
    assert [each["epoch"] for each in read.data["runs"][0]["records"]] == [0, 1]


def test_a_run_without_configuration_has_a_page_that_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x1", record())
    (run / "config.yaml").unlink()
    (notice,) = write_page([run], tmp_path / "page.html")
    assert "config.yaml is not there" in notice
    assert Reader(tmp_path / "page.html").texts["h1"] == ["x1"]


def test_an_epoch_repeated_after_a_resumption_is_shown_once_and_as_it_was_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x1", record(0), record(1), record(1, accuracy=[0.5, 0.5]), record(2))
    write_page([run], tmp_path / "page.html", epoch=1)
    (drawn,) = Reader(tmp_path / "page.html").data["runs"]
    assert [each["epoch"] for each in drawn["records"]] == [0, 1, 2]
    assert drawn["records"][1]["accuracy"] == [0.5, 0.5]
    assert (drawn["first"], drawn["axis"]) == (1, "epoch")
    twice = make_run(tmp_path / "x2", record(0), record(0, step=15), record(1))
    write_page([twice], tmp_path / "page.html")
    (drawn,) = Reader(tmp_path / "page.html").data["runs"]
    assert ([each["step"] for each in drawn["records"]], drawn["axis"]) == ([10, 15, 20], "step")


def test_thinning_keeps_the_ends_and_even_distances() -> None:
    records = [record(epoch) for epoch in range(21)]
    each = 3 * 2 + 3 + 2 * 4
    assert thin(records, 21 * each) == records
    assert [kept.epoch for kept in thin(records, 5 * each)] == [0, 5, 10, 15, 20]
    assert [kept.epoch for kept in thin(records, 1)] == [0, 20]


def test_a_long_training_of_a_deep_model_stays_below_3_megabytes(tmp_path: Path) -> None:
    layers, epochs = 40, 70
    noise = np.random.default_rng(0).uniform(-1, 1, (layers, layers)).tolist()
    similarity = dict.fromkeys(("cosine", "cka", "other"), noise)
    line = record(0, layers, similarity=similarity).to_line()
    assert epochs * 3 * layers**2 > MOST_NUMBERS
    lines = [line.replace('"epoch": 0, "step": 10', f'"epoch": {epoch}, "step": {epoch}') for epoch in range(epochs)]
    (tmp_path / "layers.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "config.yaml").write_text("experiment: deep\n")
    (notice,) = write_page([tmp_path], tmp_path / "page.html")
    assert "of its 70 epochs are here" in notice
    assert 1_500_000 < (tmp_path / "page.html").stat().st_size < 3_000_000
    shown = [each["epoch"] for each in Reader(tmp_path / "page.html").data["runs"][0]["records"]]
    assert (shown[0], shown[-1]) == (0, epochs - 1)


def test_the_environment_is_the_runs_where_it_was_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x1", record())
    write_page([run], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    facts = dict(zip(read.texts["dt"], read.texts["dd"], strict=True))
    assert facts["torch"] == environment()["torch"]
    assert any("did not record its environment" in text for text in read.texts["p"])
    (run / "environment.json").write_text('{"torch": "1.0", "parameters": {"model": 12345, "share_saved": 0.0625}}')
    write_page([run], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    facts = dict(zip(read.texts["dt"], read.texts["dd"], strict=True))
    assert facts["torch"] == "1.0"
    assert facts["parameters"] == "model 12,345, share saved 0.0625"
    assert not any("did not record" in text for text in read.texts["p"])


def test_mistakes_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x1", record())
    with pytest.raises(UserError, match=r"--output: .*ends in \.html, got .*page\.pdf"):
        write_report(run, output=tmp_path / "page.pdf")
    with pytest.raises(UserError, match=r"holds layers\.jsonl, got .*absent, which is no directory"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match=r"--stage test: .*got validate\."):
        write_report(run, stage="test")
    (run / "environment.json").write_text("[")
    with pytest.raises(UserError, match=r"expected JSON in .*environment\.json"):
        write_report(run)
