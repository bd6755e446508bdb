"""The standard library as a corpus, and a small library whose every file is known."""

import sysconfig
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from layersim.data import ByteTokenizer, StdlibCode
from layersim.data.blocks import BlockSplit
from layersim.data.stdlib_code import choose, read_sources
from layersim.data.tokenizers import Encoding, Tokenizer
from layersim.errors import UserError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty files to read, and some to leave out."""
    for number in range(60):
        write(tmp_path / f"module_{number:02}.py", f"number = {number}\n" * (1 + number % 3))
    write(tmp_path / "b" / "again.py", "number = 1\n" * 2)  # as module_01 is
    write(tmp_path / "b" / "__init__.py", "")
    for left_out in ("test/a.py", "b/tests/a.py", "idlelib/a.py", "site-packages/x/a.py", "_sysconfigdata__linux.py"):
        write(tmp_path / left_out, f"# {left_out}\n")
    (tmp_path / "notes.txt").write_text("no code")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def opened(**options: Any) -> StdlibCode:
    data = StdlibCode(**options)
    data.setup()
    return data


def text(data: StdlibCode, role: str) -> list[str]:
    """The files of a split, put together from its blocks."""
    split = data.splits[role]
    tokens = [token for position in range(len(split)) for token in split[position]["input_ids"].tolist()]
    assert tokens[-1] == ByteTokenizer.eos_id
    ends = [-1, *(place for place, token in enumerate(tokens) if token == ByteTokenizer.eos_id)]
    return [bytes(tokens[a + 1 : b]).decode() for a, b in pairwise(ends)]


def test_files_come_back_exactly_each_in_one_split(library: Path) -> None:
    data = opened(val_fraction=0.2, test_fraction=0.3, block_size=64)
    assert list(data.files) == ["train", "val", "test"]
    for role, files in data.files.items():
        assert files == sorted(files)
        assert text(data, role) == [(library / file).read_text() for file in files]
    together = [file for files in data.files.values() for file in files]
    # b/again.py comes before module_01.py
    assert sorted(together) == sorted(
        ["b/again.py", *(f"module_{number:02}.py" for number in range(60) if number != 1)]
    )
    assert [len(files) for files in data.files.values()] == [30, 12, 18]


def test_no_content_lies_in_two_splits_as_it_would_by_path_alone(library: Path) -> None:
    for number in range(60):
        write(library / "copies" / f"module_{number:02}.py", (library / f"module_{number:02}.py").read_text())
    data = opened(val_fraction=0.4)
    train, val = ({(library / file).read_text() for file in data.files[role]} for role in ("train", "val"))
    assert not train & val
    assert sum(map(len, data.files.values())) == 60
    # the control: copies that differ by a line do fall apart
    for number in range(60):
        write(library / "copies" / f"module_{number:02}.py", f"copy = {number}\n")
    apart = opened(val_fraction=0.4).files
    names = [{file.split("/")[-1] for file in apart[role]} for role in ("train", "val")]
    assert names[0] & names[1]


def test_splits_depend_on_path_and_seed_alone(library: Path) -> None:
    before = opened().files
    write(library / "added.py", "x = 1\n")
    after = opened(test_fraction=0.2).files
    assert (len(before["val"]), len(after["val"])) == (6, 7)  # of 60 and 61 files, rounded up
    assert set(before["val"]) <= {*after["val"], "added.py"}
    assert opened(seed=1).files != before


def test_small_runs(library: Path) -> None:
    sources = read_sources(library)
    few = choose(sources, max_files=10, max_bytes=None, seed=0)
    assert (len(few), few) == (10, sorted(few))
    assert set(few) < set(choose(sources, max_files=11, max_bytes=None, seed=0))
    assert few != choose(sources, max_files=10, max_bytes=None, seed=1)
    budget = sum(len(sources[file]) for file in few)
    assert choose(sources, max_files=None, max_bytes=budget, seed=0) == few
    fewer = choose(sources, max_files=None, max_bytes=budget - 1, seed=0)
    assert (len(fewer), set(fewer) < set(few)) == (9, True)
    assert sum(map(len, opened(max_files=10).files.values())) == 10


def test_the_real_library() -> None:
    data = opened(max_bytes=300_000, block_size=128)
    assert 200_000 < sum(len(split.tokens) for split in data.splits.values() if isinstance(split, BlockSplit)) < 310_000
    names = {file for files in data.files.values() for file in files}
    assert names <= read_sources(Path(sysconfig.get_path("stdlib"))).keys()
    assert opened(max_bytes=300_000).files == data.files
    (first, *_) = data.val_dataloader()
    assert first["input_ids"].shape == first["label"].shape == (64, 128)
    assert data.num_classes == 258


def test_too_few_files_for_the_splits(library: Path) -> None:
    message = r"max_files=1 and max_bytes=None leave 1 file\(s\), too few for train, val: raise --data\.max_files or"
    with pytest.raises(UserError, match=message):
        opened(max_files=1)
    assert [len(files) for files in opened(max_files=2).files.values()] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "Expected val_fraction above 0 and below 1, but got 0.0. Change --data.val_fraction"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"test_fraction below 1, got 0\.5 and 0\.5"),
        ({"max_files": 0}, r"max_files must be at least 1, got 0: change --data\.max_files"),
        ({"max_bytes": 0}, r"max_bytes must be at least 1, got 0: change --data\.max_bytes"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StdlibCode(**options)


def test_another_tokenizer_reads_the_same_files(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Words(Tokenizer):
        name, vocabulary_size, eos_id, pad_id = "words", 4, 3, 3

        def encode(self, texts: Any, pairs: Any = None, **_: Any) -> Encoding:
            kinds = {"number": 0, "=": 1}
            return {"input_ids": [[kinds.get(word, 2) for word in text.split()] for text in texts]}

    monkeypatch.setattr("layersim.data.blocks.tokenizer_of", lambda name, backbone, known: Words())
    data = opened(tokenizer=None, block_size=8)
    assert data.splits == {}, "the backbone tells its tokenizer"
    data.adapt(None)
    for role, files in data.files.items():
        split = data.splits[role]
        tokens = [token for place in range(len(split)) for token in split[place]["input_ids"].tolist()]
        lines = [len((library / path).read_text().splitlines()) for path in files]
        assert tokens == [token for count in lines for token in [0, 1, 2] * count + [3]][: len(tokens)]
    assert data.num_classes == 4
    assert data.collate([data.splits["val"][0]])["input_ids"].shape[1] <= 8
