import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair
import numpy as np
import pytest
from jsonschema import ValidationError

from layersim.commands.report import report as write_report
from layersim.errors import UserError
from layersim.report.drawing.specifications import LAYERS, bars, cells, lines
from layersim.report.environment import environment
from layersim.report.page import write_page
from layersim.report.page.document import MOST_NUMBERS, library, thin
from layersim.report.page.section import headline
from layersim.report.quantity import LAYER, Quantity
from tests.report.page_runs import HOSTILE, Reader, channels, make_run, record, shown


def test_the_page_holds_every_number_of_the_run(tmp_path: Path) -> None:
    curve: dict[str, list[Any]] = {"threshold": [0.5, None], "mean_exit_layer": [1.0, 2.0], "accuracy": [0.25, 0.75]}
    first = record(accuracy=[0.1234567, math.nan], exit_curve=curve)
    run = make_run(tmp_path / "x1", first, record(1), record(stage="test"))
    assert write_page([run], tmp_path / "out" / "page.html") == []
    (drawn,) = Reader(tmp_path / "out" / "page.html").data["runs"]
    assert [each["epoch"] for each in drawn["records"]] == [0, 1]
    assert drawn["first"] == 1
    measured, last = (each["quantities"] for each in drawn["records"])
    assert measured["accuracy"] == {"values": [0.123457, None]}
    assert measured["exit_curve"]["ticks"] == {"threshold": [0.5, None], "mean_exit_layer": [1.0, 2.0]}
    assert last["cka"]["values"] == [[1.0, 0.1818], [0.1818, 1.0]]
    assert last["saturation"]["values"] == [79, 1]
    assert last["effective_depth"]["values"] == 2


def test_two_heat_maps_carry_what_was_never_read() -> None:
    one = record()
    alike = {name: quantity for name, quantity in one.quantities.items() if quantity.is_matrix}
    found = shown(replace(one, quantities=alike))
    assert [title for title, chart in found.items() if chart["large"]] == [
        "Cosine similarity, layer by layer",
        "Linear CKA, layer by layer",
    ]


def test_every_quantity_has_its_charts_and_the_story_comes_first() -> None:
    found = shown(record(0, 3), record(1, 3))
    assert [title for title, chart in found.items() if chart["large"]] == [
        "Accuracy by layer",
        "Cosine similarity, layer by layer",
    ]
    assert [*found][2:] == [
        "Linear CKA, layer by layer",
        "Loss by layer, nats",
        "Saturated here by layer, and up to it",
        "Cosine similarity to the last layer",
        "Linear CKA to the last layer",
        "Accuracy over training",
        "Loss over training, nats",
        "Saturated here over training",
        "Cosine similarity to the last layer over training",
        "Linear CKA to the last layer over training",
        "Saturated early over training",
        "Mean saturation layer, effective depth over training",
    ]


def test_what_nobody_has_heard_of_is_drawn_by_its_axes_unit_and_range() -> None:
    own = {
        "wobble": Quantity(values=[1.0, 10.0], axes=(LAYER,), unit="ratio", label="wobbling", better="lower"),
        "tilt": Quantity(values=[[-0.5, 0.25]], axes=("head", LAYER), range=(-1, 1), ticks={"head": ["left"]}),
        "drift": Quantity(values=[0.5, 0.75], axes=("season",), unit="share", ticks={"season": ["dry", "wet"]}),
        "way": Quantity(
            values=[[[0.0, 1.0], [2.0, 3.0]]], axes=("class", LAYER, "direction"), ticks={"class": ["cat"]}
        ),
        "cube": Quantity(values=[[[0.0] * 3] * 2] * 2, axes=("a", "b", "c")),
        "heat": Quantity(values=36.6, unit="°C"),
    }
    found = shown(record(**own), record(1, **own))
    assert channels(found["Wobbling by layer"], "line")["y"]["scale"]["type"] == "log"
    tilt = found["Tilt by head and layer"]
    assert tilt["spans"] == {"fixed": [-1.0, 1.0], "data": [-0.5, 0.5]}
    assert channels(tilt, "rect")["color"]["scale"]["scheme"] == "redblue"
    assert channels(tilt, "rect")["y"]["title"] == "head"
    drift = channels(found["Drift by season"], "line")
    assert (drift["x"]["type"], drift["y"]["axis"]["format"]) == ("ordinal", "%")
    assert channels(found["Way: second direction over the first"], "area")["color"]["scale"]["domain"] == ["cat"]
    assert channels(found["Cube by a and b and c"], "rect")["y"]["title"] == "a, b"
    assert found["Heat over training"]["keys"] == {"heat": "heat"}


@pytest.mark.parametrize(
    "spec",
    [
        lines(LAYER, "share", log=True),
        lines("epoch", "", series=LAYERS),
        lines("season", "", series=["a", "b"], named=True),
        bars(LAYER, "samples"),
        cells(LAYER, "head", "RdBu_r"),
    ],
)
def test_specifications_are_what_vega_lites_own_schema_takes(spec: dict[str, Any]) -> None:
    altair.LayerChart.from_dict(spec)
    with pytest.raises(ValidationError, match="worm"):
        altair.LayerChart.from_dict(spec | {"layer": [{"mark": "worm"}]})


def test_colours_are_sequential_where_all_values_are_0_or_more() -> None:
    alike = [[1.0, 0.9], [0.9, 1.0]]
    found = shown(record(similarity={"cosine": alike, "angular": [[0.0, 0.2], [0.2, 0.0]]}))
    cosine, angular = found["Cosine similarity, layer by layer"], found["Angular distance, layer by layer"]
    assert cosine["spans"] == {"fixed": [0.0, 1.0], "data": [0.9, 1.0]}
    colors = [channels(each, "rect")["color"]["scale"] for each in (cosine, angular)]
    assert [(each["scheme"], each["reverse"]) for each in colors] == [("viridis", False), ("viridis", True)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"accuracy": [0.5, 0.887, 0.883]},
            "Layer 2 of 3 is as good as the last: accuracy 0.887 against 0.883. "
            "Mean saturation layer 1.25 of 3, effective depth 2 of 3.",
        ),
        (
            {"accuracy": [0.5, 0.75, 0.875], "mean_saturation_layer": math.nan, "effective_depth": None},
            "No layer is as good as the last of 3: accuracy 0.875 against 0.750 at the one before.",
        ),
        (
            {"perplexity": [9.0, 8.0, 8.5], "effective_depth": None},
            "Layer 2 of 3 is as good as the last: perplexity 8.000 against 8.500. Mean saturation layer 1.25 of 3.",
        ),
        ({"accuracy": [0.5, 0.5, math.nan], "effective_depth": None}, "Mean saturation layer 1.25 of 3."),
    ],
)
def test_the_headline_is_made_from_the_numbers(changes: dict[str, Any], said: str) -> None:
    assert headline(record(0, 3, **({"effective_depth": 2} | changes))) == said


def test_without_the_script_the_last_epoch_stands_in_a_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x1", record(), record(1, accuracy=[0.25, math.nan]))
    write_page([run], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    assert read.texts["caption"] == ["Epoch 1, step 20, 80 samples"]
    assert read.texts["td"] == ["0.250", "2.250", "98.8%", "0.182", "0.182", "nan", "1.125", "1.2%", "1.000", "1.000"]


def test_a_language_model_is_told_in_perplexity_and_tokens(tmp_path: Path) -> None:
    tokens = record(unit="tokens", perplexity=[8.5, 8.0], effective_depth=1, samples=12345, left_out=1234)
    runs = [make_run(tmp_path / f"x{seed}", tokens, config=f"seed_everything: {seed}\n") for seed in range(2)]
    write_page(runs[:1], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    facts = dict(zip(read.texts["dt"], read.texts["dd"], strict=True))
    assert facts["tokens"] == "12,345"
    assert facts["could not be read"] == "1,234"
    assert "perplexity 8.000 against 8.500" in " ".join(read.texts["p"])
    assert facts["effective depth"] == "1 of 2 (epsilon 0.01)"
    assert read.texts["caption"] == ["Epoch 0, step 10, 12,345 tokens"]
    assert read.texts["th"][:4] == ["layer", "perplexity", "accuracy", "loss"]
    assert read.data["charts"][0]["title"] == "Perplexity by layer"
    write_page(runs, tmp_path / "both.html")
    both = Reader(tmp_path / "both.html")
    assert both.texts["caption"][0].startswith("Perplexity by layer: mean and 95 % interval")
    assert [chart["title"] for chart in both.data["static"] if chart["large"]] == [
        "Perplexity by layer",
        "Cosine similarity to the last layer",
    ]


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
    assert facts["objective"] == "Aligned (weights uniform)"
    assert facts["head"] == "SeparateHeads"
    assert facts["backbone"] == "TimmBackbone (name vit)"
    assert (facts["seed"], facts["run"]) == ("7", "x1")
    assert read.texts["h1"] == ["digits/aligned"]
    assert config in read.texts["pre"][0]


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    config = f"experiment: {json.dumps(HOSTILE)}\nmodel:\n  head: {json.dumps(HOSTILE)}\n"
    similarity = {HOSTILE: [[1.0, 0.5], [0.5, 1.0]]}
    run = make_run(tmp_path / "x1", record(similarity=similarity), config=config)
    write_page([run, make_run(tmp_path / "x2", record())], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    assert "img" not in read.texts
    assert not [name for name, _ in read.elements if name == "img"]
    assert len(read.texts["script"]) == 3
    assert f"{HOSTILE}, layer by layer" in [chart["title"] for chart in read.data["charts"]]
    assert HOSTILE in read.texts["h2"]


def test_nothing_is_loaded_and_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    write_page([make_run(tmp_path / "x1", record())], tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    loaded = [value for _, attributes in read.elements for name, value in attributes.items() if name in ("src", "href")]
    assert loaded == ["data:,"]
    assert not re.search(r"url\((?!#)|@import", read.texts["style"][0])
    policy = next(a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    scripts = read.texts["script"][1:]
    assert scripts[0] == library()
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    allowed = f"script-src 'sha256-{digests[0]}' 'sha256-{digests[1]}'"
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {allowed}"


def test_the_library_is_bundled_once_and_kept_where_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled: list[str] = []
    monkeypatch.setattr(
        "layersim.report.page.document.vega", lambda call: bundled.append(call) or f"bundle {len(bundled)}".encode()
    )
    monkeypatch.setattr("layersim.report.page.document.user_cache_path", lambda name: tmp_path / name)
    bundle = library.__wrapped__
    assert (bundle(), bundle()) == ("bundle 1", "bundle 1")
    (tmp_path / "file").touch()
    monkeypatch.setattr("layersim.report.page.document.user_cache_path", lambda name: tmp_path / "file" / name)
    assert (bundle(), bundle()) == ("bundle 2", "bundle 3")


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
    assert drawn["records"][1]["quantities"]["accuracy"]["values"] == [0.5, 0.5]
    assert (drawn["first"], drawn["axis"]) == (1, "epoch")
    twice = make_run(tmp_path / "x2", record(0), record(0, step=15), record(1))
    write_page([twice], tmp_path / "page.html")
    (drawn,) = Reader(tmp_path / "page.html").data["runs"]
    assert ([each["step"] for each in drawn["records"]], drawn["axis"]) == ([10, 15, 20], "step")


def test_thinning_keeps_the_ends_and_even_distances() -> None:
    records = [record(epoch) for epoch in range(21)]
    each = 3 * 2 + 3 + 2 * 4  # three curves, three numbers, two matrices
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
    with pytest.raises(UserError, match=r"environment\.json: expected a JSON object"):
        write_report(run)
