import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from layersim.commands.compare import compare
from layersim.errors import UserError
from layersim.report.quantity import LAYER, Quantity, curve
from layersim.report.records import LayerRecord, append_record, read_records
from layersim.report.run import Run, load_run, name_runs
from layersim.report.table import comparison_table, layer_table
from layersim.report.terminal import SideBySide
from tests.report.recorded import recorded


def record(**changes: Any) -> LayerRecord:
    values: dict[str, Any] = {
        "epoch": 2,
        "step": 30,
        "stage": "validate",
        "layers": 2,
        "samples": 80,
        "accuracy": [0.125, 0.875],
        "saturation": [60, 20],
        "saturated_early": 0.75,
        "mean_saturation_layer": 1.25,
        "similarity": {"cosine": [[1.0, 0.375], [0.375, 1.0]], "cka": [[1.0, 0.625], [0.625, 1.0]]},
        "options": {"cosine": {"centering": "samples"}},
    }
    return recorded(**(values | changes))


def make_run(directory: Path, *records: LayerRecord, experiment: str | None = None) -> Path:
    for one in records:
        append_record(directory / "layers.jsonl", one)
    if experiment is not None:
        (directory / "config.yaml").write_text(f"experiment: {experiment}\nmodel:\n  lr: 0.1\n")
    return directory


def words(table: Table | SideBySide, width: int = 100) -> list[list[str]]:
    """The rendered lines, each as its words."""
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(table)
    return [line.split() for line in console.export_text().splitlines() if line.strip()]


def test_layer_table() -> None:
    title, *_ = words(layer_table(record(left_out=3)))
    assert title[5:] == ["80", "samples", "(3", "of", "the", "data", "could", "not", "be", "read)"]
    lines = words(layer_table(record(loss=[2.25, 0.5], effective_depth=2)))
    assert lines[0] == ["validate,", "epoch", "2,", "step", "30:", "80", "samples"]
    assert ["layer", "accuracy", "loss", "here", "to", "last", "to", "last"] in lines
    assert ["1", "0.125", "2.250", "75.0%", "0.375", "0.625"] in lines
    assert ["2", "0.875", "0.500", "25.0%", "1.000", "1.000"] in lines
    assert lines[-3:] == [
        ["saturated", "early:", "75.0%"],
        ["mean", "saturation", "layer:", "1.25", "of", "2"],
        ["effective", "depth:", "2", "of", "2", "(epsilon", "0.01)"],
    ]


def test_a_language_models_table_tells_perplexities_of_tokens() -> None:
    tokens = record(unit="tokens", perplexity=[1.07e13, 8.0], accuracy=[0.02, 0.31])
    lines = words(layer_table(tokens), width=80)
    assert lines[0] == ["validate,", "epoch", "2,", "step", "30:", "80", "tokens"]
    assert ["layer", "perplexity", "accuracy", "here", "to", "last", "to", "last"] in lines
    assert ["1", "1.07e+13", "0.020", "75.0%", "0.375", "0.625"] in lines
    assert ["2", "8.000", "0.310", "25.0%", "1.000", "1.000"] in lines
    compared = words(comparison_table({"gpt": tokens, "vit": record()}), width=80)
    assert compared[1] == ["layer", "perplexity", "cosine", "accuracy", "cosine"]
    assert compared[3:5] == [["1", "1.07e+13", "0.375", "0.125", "0.375"], ["2", "8.000", "1.000", "0.875", "1.000"]]


def test_a_line_below_a_table_is_whole_at_any_width_of_the_terminal() -> None:
    how = {"samples": 400, "centering": "samples", "drawn": "by seed"}
    ends = {"confidence": 0.95, "low": -0.011, "high": 0.023}
    gap = Quantity(values=0.006, label="how far behind the best", options=how, interval=ends)
    told = "how far behind the best: 0.006, -0.011 … 0.023 (samples 400, centering samples, drawn by seed)"
    for width in (40, 80, 120):
        lines = words(layer_table(record(gap=gap)), width=width)
        assert [word for line in lines for word in line][-len(told.split()) :] == told.split()
    assert words(layer_table(record(gap=gap)), width=120)[-1] == told.split(), "one line where it fits"


def test_what_nobody_has_heard_of_stands_in_the_tables() -> None:
    own = {"pull": curve([2.5, 3.0], better="lower"), "sheep": Quantity(values=7, unit=LAYER)}
    lines = words(layer_table(record(**own)))
    assert ["layer", "accuracy", "here", "to", "last", "to", "last", "pull"] in lines
    assert ["sheep:", "7", "of", "2"] in lines
    compared = words(comparison_table({"a": record(**own), "b": record()}), width=80)
    assert ["pull,", "last", "layer", "3.000"] in compared
    assert ["sheep", "7", "of", "2"] in compared


def test_layer_table_has_no_column_for_what_was_not_recorded() -> None:
    lines = words(layer_table(record(saturation=None, similarity={}, saturated_early=None)))
    assert ["layer", "accuracy"] in lines
    assert ["1", "0.125"] in lines
    assert lines[-1] == ["mean", "saturation", "layer:", "1.25", "of", "2"]


def test_comparison_table_of_the_demo_fits_80_columns() -> None:
    runs = {
        "standard": record(),
        "[red]aligned": record(accuracy=[0.5, 0.75], saturated_early=0.5),
        "separate heads": record(layers=1, accuracy=[0.25], saturation=[80], similarity={}, epoch=7),
    }
    lines = words(comparison_table(runs), width=80)
    assert lines[0] == ["standard", "[red]aligned", "separate", "heads"]
    assert lines[1] == ["layer"] + ["accuracy", "cosine"] * 3
    assert lines[3:] == [
        ["1", "0.125", "0.375", "0.500", "0.375", "0.250"],
        ["2", "0.875", "1.000", "0.750", "1.000"],
        ["epoch", "2", "2", "7"],
        ["saturated", "early", "75.0%", "50.0%", "75.0%"],
        ["mean", "saturation", "layer", "1.25", "of", "2", "1.25", "of", "2", "1.25", "of", "1"],
        ["cosine:", "centering", "samples"],
    ]


def test_comparison_table_keeps_long_names_whole() -> None:
    runs = {f"digits/{name}": record() for name in ("last_layer", "aligned", "separate_heads")}
    lines = words(comparison_table(runs), width=80)
    assert lines[:2] == [["digits/"] * 3, ["last_layer", "aligned", "separate_heads"]]
    lines = words(comparison_table({"x" * 40: record()}), width=40)  # wider than the console
    assert "".join(word for line in lines for word in line).count("x") == 40


def test_no_width_cuts_a_number() -> None:
    names = ("digits/last_layer", "digits/aligned", "digits/alternating", "digits/a_head_for_each")
    runs = {name: record(loss=[2.25, 0.5]) for name in names}
    for width in range(60, 140):
        lines = words(comparison_table(runs), width=width)
        numbers = [line[1:] for line in lines if line[0] == "1"]
        assert sorted(number for line in numbers for number in line) == sorted(["0.125", "0.375"] * 4), width


def test_runs_that_do_not_fit_stand_in_tables_below_each_other() -> None:
    runs = {f"run {number}": record(accuracy=[number / 8, 0.875]) for number in range(8)}
    lines = words(comparison_table(runs), width=80)
    first_layers = [line[1::2] for line in lines if line[0] == "1"]
    assert first_layers == [["0.000", "0.125", "0.250"], ["0.375", "0.500", "0.625"], ["0.750", "0.875"]]
    assert [line for line in lines if line[0] == "cosine:"] == [["cosine:", "centering", "samples"]], "once, at the end"
    assert len([line for line in words(comparison_table(runs), width=200) if line[0] == "1"]) == 1
    assert len([line for line in words(comparison_table(runs), width=20) if line[0] == "1"]) == 8


def test_comparison_table_tells_where_the_measure_was_computed_differently() -> None:
    runs = {"a": record(), "b": record(options={"cosine": {"centering": "components"}})}
    lines = [" ".join(line) for line in words(comparison_table(runs))]
    assert lines[-3:] == [
        "cosine was computed in different ways, its numbers do not compare:",
        "a: centering samples",
        "b: centering components",
    ]


def test_it_prints_the_table_and_writes_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(tmp_path / "runs/standard/x1", record(epoch=0), record(), experiment="standard")
    second = make_run(
        tmp_path / "runs/aligned/x2", record(accuracy=[0.5, 0.75]), record(stage="test", epoch=9), experiment="aligned"
    )
    figure = tmp_path / "out" / "c.png"
    compare([first, second], output=figure)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["standard", "aligned"] in printed
    assert ["1", "0.125", "0.375", "0.500", "0.375"] in printed
    assert ["epoch", "2", "2"] in printed
    assert ["Figure:", str(figure)] in printed
    assert printed[-1] == ["Page:", str(tmp_path / "out" / "c.html")]
    with Image.open(figure) as image:
        image.load()
        assert image.format == "PNG"


def test_each_run_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table and page tell one reading, of a run that goes on meanwhile too; a run that is named twice is one."""
    read = []
    monkeypatch.setattr("layersim.report.run.read_records", lambda path: read.append(path) or read_records(path))
    runs = [make_run(tmp_path / name, record(), experiment=name) for name in ("a", "b")]
    compare([*runs, runs[0]], output=tmp_path / "c.png")
    assert read == [run / "layers.jsonl" for run in runs]
    assert "2 runs compared" in (tmp_path / "c.html").read_text()


def test_it_picks_stage_and_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    older, newer, resumed = (
        record(epoch=epoch, saturated_early=share) for epoch, share in ((0, 0.1), (1, 0.2), (0, 0.3))
    )
    run = make_run(tmp_path / "x1", older, newer, resumed, record(stage="test", saturated_early=0.4))

    def saturated_early(**options: Any) -> str:
        compare([run], **options)
        found = re.search(r"saturated early\s+(\S+)", capsys.readouterr().out)
        assert found
        return found[1]

    assert saturated_early() == "30.0%"
    assert saturated_early(epoch=1) == "20.0%"
    assert saturated_early(epoch=0) == "30.0%"  # an epoch repeated after a resumption: the later record
    assert saturated_early(stage="test") == "40.0%"
    assert (tmp_path / "comparison.png").is_file()
    with pytest.raises(UserError, match=r"--epoch 5: .*x1/layers\.jsonl, got only 0, 1\."):
        compare([run], epoch=5)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"holds layers\.jsonl, got .*absent, which is no directory"):
        compare([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"holds layers\.jsonl, got .*, which holds none"):
        compare([tmp_path])
    runs = [make_run(tmp_path / "runs" / "digits" / name, record()) for name in ("x1", "x2")]
    (predicted := tmp_path / "predicted").mkdir()
    (predicted / "config.yaml").write_text("experiment: digits\n")
    with pytest.raises(UserError, match=r"predicted holds no layers\.jsonl: nothing was measured there"):
        compare([predicted])
    compare([*runs, predicted], output=tmp_path / "c.png")
    assert "predicted is left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="which holds runs: name one or more of") as told:
        compare([tmp_path / "runs" / "digits"])
    assert str(told.value).splitlines()[1:] == [f"  {run}" for run in runs]


def test_other_mistakes_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x1", record())
    with pytest.raises(UserError, match=r"--stage test: expected a record of this stage .*, got validate\."):
        compare([run], stage="test")
    with pytest.raises(UserError, match=r"--output: .*ends in \.png, got .*c\.pdf"):
        compare([run], output=tmp_path / "c.pdf")
    (run / "layers.jsonl").write_text("")
    with pytest.raises(UserError, match="got no record at all"):
        compare([run])
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"expected YAML in .*config\.yaml"):
        load_run(run)


def test_a_run_is_named_by_its_experiment_or_its_directory(tmp_path: Path) -> None:
    assert load_run(make_run(tmp_path / "x1", record(), experiment="digits")).name == "digits"
    assert load_run(make_run(tmp_path / "x2", record())).name == "x2"
    assert load_run(make_run(tmp_path / "x3", record(), experiment="null")).name == "x3"


def test_names_that_clash_get_the_run_id_then_the_path() -> None:
    def named(*runs: tuple[str, str]) -> list[str]:
        return name_runs([Run(name, Path(path), []) for name, path in runs])

    assert named(("a", "r/1"), ("b", "r/2")) == ["a", "b"]
    assert named(("a", "r/abcd1234"), ("a", "r/efgh5678"), ("b", "r/3")) == [
        "a (abcd1234)",
        "a (efgh5678)",
        "b",
    ]
    assert named(("a", "r/x"), ("a", "s/x")) == ["a (r/x)", "a (s/x)"]
