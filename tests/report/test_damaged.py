"""A damaged file costs its run a line, and the verb nothing."""

import json
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from layersim.__main__ import main
from layersim.errors import UserError
from layersim.report import reading, records
from layersim.report.claims import judge, markdown, read_arms
from layersim.report.claims.verdicts import verdicts_table
from layersim.report.configuration import read_configuration
from layersim.report.page.charts import charts, drawn_record
from layersim.report.page.section import read_run, section
from layersim.report.reading import DamagedFile
from layersim.report.records import read_records
from layersim.report.run import pick_record
from layersim.report.runs import RunsTable, find_runs
from layersim.report.table import comparison_table, layer_table
from tests.report.claims.synthetic import APART, RISES, curve, make
from tests.report.test_compare import words

FACTS: dict[str, Any] = {
    "accuracy": RISES,
    "target_probability": RISES,
    "saturation": [400, 300, 200, 100],
    "similarity": {"cosine": (1 - 0.2 * APART).tolist(), "cka": (1 - 0.1 * APART).tolist()},
    "intervals": {"cka": {"confidence": 0.95, "low": (APART * 0.0).tolist(), "high": (APART * 1.0).tolist()}},
    "exit_curve": curve(0.8),
    "effective_depth": 3,
    "exits": 0.25,
    "shifted": RISES,
    "probed": RISES,
}
FILES = ("layers.jsonl", "config.yaml", "exits.json", "transfer.json", "environment.json")
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    1e300,
    2**80,
    "",
    "[/b]",
    "$\\frac{",
    "\ud800",
    "x" * 200,
    [],
    [[]],
    {},
    {"": 1},
    [1, "a"],
]


def whole(directory: Path, seed: int = 0) -> Path:
    run = make(directory, "aligned", seed, FACTS)
    (run / "environment.json").write_text('{"torch": "2.8", "processes": "1", "parameters": {"share_saved": 0.25}}')
    return run


def read_by_every_verb(directory: Path) -> list[str]:
    """What `runs`, `claims`, and `report` and `compare` do of one run, less their figures; gives what was refused."""
    told: list[str] = []

    def runs() -> None:
        (found,) = find_runs([directory])
        words(RunsTable([found], time.time()))
        told.extend([found.notice] if found.notice else [])

    def claims() -> None:
        arms = read_arms({"aligned": [directory]})
        verdicts = judge(arms)
        words(verdicts_table(arms, verdicts))
        markdown([(arms, verdicts)])

    def page() -> None:
        read = read_run(directory)
        record = pick_record(read.run, stage="validate")
        json.dumps([charts([record]), drawn_record(record)], allow_nan=False).encode()
        section(0, read.run.name, read, record).encode()
        words(layer_table(record))
        words(comparison_table({read.run.name: record}))

    for verb in (runs, claims, page):
        try:
            verb()
        except UserError as error:
            told.append(str(error))
    for line in told:
        line.encode()
        assert len(line) < 3000
    return told


def test_the_control_a_whole_run_is_refused_nowhere(tmp_path: Path) -> None:
    assert read_by_every_verb(whole(tmp_path / "run")) == []


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each thing that holds others, with a key in it."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in inner] + [place for _, each in inner for place in _places(each)]


def mutated(content: bytes, name: str, dice: random.Random) -> bytes:
    """The file with one to three of its values or bytes changed."""
    if dice.random() < 0.35:
        changed = bytearray(content)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(changed))
            piece = dice.choice(
                [b"\x00", b"\xff\xfe", b"{", b"]" * 9, b"\n", b"NaN", b"1e999", b"&a *a", b": ", b"<<: ", b"-9"]
            )
            changed[at : at + dice.choice([0, 1, 40])] = piece
        return bytes(changed)
    tree = yaml.safe_load(content) if name == "config.yaml" else json.loads(content)
    for _ in range(dice.randint(1, 3)):
        holder, key = dice.choice(_places(tree) or [({0: 0}, 0)])
        if dice.random() < 0.2:
            del holder[key]
        else:
            holder[key] = dice.choice(ODD)
    return (yaml.safe_dump(tree) if name == "config.yaml" else json.dumps(tree) + "\n").encode()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = whole(tmp_path_factory.mktemp("sound") / "run")
    return {name: (run / name).read_bytes() for name in FILES}


@settings(max_examples=int(os.environ.get("LAYERSIM_EXAMPLES", "150")), deadline=None, derandomize=True)
@given(name=st.sampled_from(FILES), seed=st.integers(0, 2**32))
def test_whatever_is_changed_is_told_in_a_line_or_read(sound: dict[str, bytes], name: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(cut by an interruption|not known here)", UserWarning)
        run = Path(folder) / "run"
        run.mkdir()
        for each, content in sound.items():
            (run / each).write_bytes(mutated(content, each, random.Random(seed)) if each == name else content)
        read_by_every_verb(run)


def bomb() -> str:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(["a0: &a0 [x, x]", *levels])


def merges() -> str:
    levels = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    return "\n".join(["a0: &a0 {x: 1}", *levels])


LINE = '{"version": 1, "epoch": 0, "step": 0, "stage": "validate", "layers": %s, "samples": 1, "unit": "samples", %s}\n'
DAMAGES: dict[str, tuple[str, Callable[[], str | bytes], str]] = {
    "brackets": ("config.yaml", lambda: "a: " + "[" * 10_000, "expected YAML in"),
    "a bomb": ("config.yaml", bomb, "more than anything reads"),
    "merges": ("config.yaml", merges, "expected no <<"),
    "itself": ("config.yaml", lambda: "a: &a [*a]", "nested at most 40 deep"),
    "50 MB": ("config.yaml", lambda: "a: b\n" * 10_000_000, "expected at most 131,072 bytes"),
    "binary": ("config.yaml", lambda: b"\xff\xfe\x00\x01", "no UTF-8"),
    "nothing": ("config.yaml", lambda: "", "expected a mapping"),
    "twice": ("config.yaml", lambda: "model: {}\nmodel: {a: 1}", "the key model comes twice"),
    "a class": ("config.yaml", lambda: "a: !!python/object/apply:os.system [true]", "expected YAML in"),
    "a section": ("config.yaml", lambda: "trainer: [1]", r"trainer: expected a mapping, got \[1\]"),
    "a name": ("config.yaml", lambda: "experiment: {a: 1}", "experiment: expected a name, got"),
    "a number": ("config.yaml", lambda: "a: 0x" + "f" * 9000, "64 bits"),
    "deep": ("layers.jsonl", lambda: LINE % (4, '"quantities": ' + "[" * 10_000), "line 1: .*no JSON"),
    "some deep": ("layers.jsonl", lambda: LINE % (4, '"quantities": ' + "[" * 50 + "]" * 50), "nested at most 40 deep"),
    "keys": ("layers.jsonl", lambda: LINE % (4, '"epoch": 1, "quantities": {}'), "the key epoch comes twice"),
    "infinity": ("layers.jsonl", lambda: LINE % (4, '"quantities": {"a": {"values": 1e999}}'), "64 bits, got infinity"),
    "no number": ("layers.jsonl", lambda: LINE % (4, '"quantities": {"a": {"values": NaN}}'), "NaN is written as null"),
    "layers": (
        "layers.jsonl",
        lambda: LINE % (10**9, '"quantities": {}'),
        "expected at most 10,000, got 1,000,000,000",
    ),
    "a long line": (
        "layers.jsonl",
        lambda: LINE % (4, '"x": "' + "x" * 10**8 + '", "quantities": {}'),
        "no line begins within",
    ),
    "a line": (
        "layers.jsonl",
        lambda: LINE % (4, '"x": "' + "x" * 2**25 + '", "quantities": {}'),
        "line 1: expected at most 16,777,216",
    ),
    "numbers": (
        "layers.jsonl",
        lambda: LINE % (4, '"quantities": {"a": {"values": ' + "9" * 10_000 + "}}"),
        "line 1: .*no JSON: Exceeds the limit",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_kind_of_damage_has_its_line_and_takes_no_time(damage: str, tmp_path: Path) -> None:
    name, content, said = DAMAGES[damage]
    run = whole(tmp_path / "run")
    made = content()
    (run / name).write_bytes(made if isinstance(made, bytes) else made.encode())
    reader = read_configuration if name == "config.yaml" else lambda directory: read_records(directory / name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*only the last", UserWarning)
        with pytest.raises(DamagedFile, match=said) as told:
            reader(run)
    assert str(run / name) in str(told.value)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("name", ["config.yaml", "layers.jsonl", "exits.json", "environment.json"])
@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_is_told(name: str, kind: str, tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    (run / name).unlink()
    (run / name).mkdir() if kind == "directory" else os.mkfifo(run / name)
    assert any(str(run / name) in line for line in read_by_every_verb(run))


def test_the_verbs_go_on_without_the_damaged_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad = whole(tmp_path / "good"), whole(tmp_path / "bad", seed=1)
    (bad / "layers.jsonl").write_text("[" * 10_000 + "\n")
    assert main(["runs", str(tmp_path)]) == 0
    assert main(["compare", str(good), str(bad)]) == 0
    assert main(["claims", "--aligned", str(good), str(bad)]) == 0
    said = capsys.readouterr().out
    assert said.count(f"{bad / 'layers.jsonl'}, line 1: expected a JSON object") == 3
    assert f"{bad / 'layers.jsonl'}, line 1" in (tmp_path / "comparison.html").read_text()
    for words_ in (["compare", str(bad)], ["report", str(bad)], ["claims", "--aligned", str(bad)]):
        assert main(words_) == 2
        assert "line 1: expected a JSON object" in capsys.readouterr().err


def test_of_a_long_file_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = whole(tmp_path / "run") / "layers.jsonl"
    line = path.read_bytes()
    path.write_bytes(line * 5)
    monkeypatch.setattr(records, "MOST_BYTES", len(line) * 3 + 10)
    with pytest.warns(UserWarning, match=f"{path} has .* bytes: only the last .* are read"):
        assert len(read_records(path)) == 3


def test_a_value_in_a_message_is_short() -> None:
    assert reading.short({str(n): n for n in range(6)}) == "an object of 6"
    assert reading.short("x" * 500) == f"'{'x' * 79} …"
    assert reading.short(10**5000) == "int"
