"""Samples that cannot be read are left out: the same in every process, counted, and told once."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layersim.data import EvaluationSampler, Images, LanguageModeling, Text
from layersim.data.bad_samples import text_faults
from layersim.errors import UserError
from tests.data.pictures import BACKBONE, encoded, image_folder, parquet, picture

PNG = encoded(picture(0))
BAD_IMAGES = {3: None, 4: b"", 8: b"no image", 9: PNG[:60], 12: PNG[:-30]}


def images_with(bad: dict[int, Any], count: int = 20) -> list[dict[str, Any]]:
    return [{"bytes": bad.get(row, encoded(picture(row))), "path": None} for row in range(count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_that_cannot_be_read_are_left_out(
    num_workers: int, tmp_path: Path, infos: pytest.LogCaptureFixture
) -> None:
    path = parquet(tmp_path, [0, 1] * 10, images_with(BAD_IMAGES))
    data = Images(path, on_bad_sample="skip", num_workers=num_workers)
    data.check(BACKBONE)
    read = [
        int(index)
        for loader in (data.train_dataloader(), data.val_dataloader())
        for batch in loader
        for index in batch["index"]
    ]
    assert sorted(read) == sorted(set(range(20)) - BAD_IMAGES.keys()), "each readable one once"
    assert data.left_out == 5
    assert infos.messages[0] == (
        "Left out, as they cannot be read: 5 of 20 rows in train (row 3: no image; row 4: no image that can be read: "
        "cannot identify image file; row 8: no image that can be read: cannot identify image file; and 2 more)."
    )


def test_a_file_that_is_cut_short_is_named(tmp_path: Path, infos: pytest.LogCaptureFixture) -> None:
    root = image_folder(tmp_path)
    broken = tmp_path / "train/dog/05.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    data = Images(root, val_split="train")
    data.check(BACKBONE)
    with pytest.raises(UserError, match=rf"^row 12 of split train: {broken} is no image that can be read: .*=skip$"):
        list(data.val_dataloader())
    skipping = Images(root, test_split="test", on_bad_sample="skip")
    skipping.setup()
    assert (len(skipping.splits["train"]) + len(skipping.splits["val"]), skipping.left_out) == (19, 1)
    assert f"1 of 20 rows in train (row 12: {broken} is no image" in infos.messages[-2]


def test_images_are_read_once_for_all_processes_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path, [0, 1] * 10, images_with(BAD_IMAGES))

    def indices() -> list[list[int]]:
        data = Images(path, on_bad_sample="skip")
        data.setup()
        return [split.index.tolist() for split in data.splits.values()]

    first = indices()
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.open", lambda _: pytest.fail("read a second time"))
        assert indices() == first
    parquet(tmp_path, [0, 1] * 10)
    os.utime(path, (0, 0))
    assert sum(map(len, indices())) == 20, "another file of that name is read anew"


def test_pictures_beside_a_table_are_looked_at_again_once_they_change(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(b"no image" if number == 4 else encoded(picture(number)))
    rows = [{"bytes": None, "path": str(tmp_path / f"{number}.png")} for number in range(20)]
    path = parquet(tmp_path, [0, 1] * 10, rows)

    def read() -> set[int]:
        data = Images(path, on_bad_sample="skip")
        data.setup()
        return {int(index) for split in data.splits.values() for index in split.index}

    assert read() == {*range(20)} - {4}
    (tmp_path / "4.png").write_bytes(encoded(picture(4)))
    assert read() == {*range(20)}
    (tmp_path / "7.png").unlink()
    assert read() == {*range(20)} - {7}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_reads_the_same(processes: int, tmp_path: Path) -> None:
    data = Images(parquet(tmp_path, [0, 1] * 10, images_with(BAD_IMAGES)), val_split="train", on_bad_sample="skip")
    data.check(BACKBONE)
    split = data.splits["val"]
    samplers = [EvaluationSampler(split, 4, num_replicas=processes, rank=rank) for rank in range(processes)]
    read = [split[place]["index"] for sampler in samplers for place in sampler]
    assert sorted(read) == sorted(set(range(20)) - BAD_IMAGES.keys()), "each readable one once"


def test_rows_of_a_slice_are_told_as_those_of_the_split(tmp_path: Path, infos: pytest.LogCaptureFixture) -> None:
    data = Images(
        parquet(tmp_path, [0, 1] * 10, images_with({13: None})),
        on_bad_sample="skip",
        val_split="train[10:]",
        train_split="train[:10]",
    )
    data.setup()
    assert [len(data.splits[role]) for role in ("train", "val")] == [10, 9]
    assert "1 of 10 rows in train (row 13: no image)" in infos.messages[0]


def test_faults_of_texts() -> None:
    offsets = pa.array([0, 1, 2, 3, 4], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 4, [None, offsets, pa.py_buffer(b"a\xffb\0")])
    texts = pa.chunked_array([["fine", None, "ü"], broken])
    assert text_faults(texts) == {1: "no text", 4: "invalid byte 0xff, expected UTF-8", 6: "the byte NUL"}
    assert text_faults(texts.slice(0, 1)) == {}


ROWS = [(b"text %d" % number, b"%d" % (number % 2)) for number in range(20)]


def written(folder: Path, kind: str, rows: list[tuple[bytes, bytes]]) -> str:
    if kind == "jsonl":
        lines = [b'{"text": "%s", "label": %s}' % row for row in rows]
    elif kind == "txt":
        lines = [text for text, _ in rows]
    else:
        separator = {"csv": b",", "tsv": b"\t"}[kind]
        lines = [separator.join(row) for row in [(b"text", b"label"), *rows]]
    path = folder / f"train.{kind}"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "txt"])
@pytest.mark.parametrize("as_language", [False, True])
def test_texts_that_are_no_utf8_are_left_out(kind: str, as_language: bool, tmp_path: Path) -> None:
    rows = list(ROWS)
    rows[5], rows[18] = (b"caf\xe9", b"1"), (b"\xff\xfe", b"0")
    path = written(tmp_path, kind, rows)
    if kind == "txt" and not as_language:
        pytest.skip("a txt file has no labels")
    options: dict[str, Any] = {"tokenizer": "bytes", "val_split": "train"}
    make: Any = LanguageModeling if as_language else Text
    with pytest.raises(UserError, match=rf"train\.{kind}, line {6 + (kind in 'csv tsv')}: invalid byte 0xe9"):
        make(path, **options).setup()
    data = make(path, on_bad_sample="skip", **options)
    data.setup()
    assert data.left_out == 2
    kept = [text for number, (text, _) in enumerate(rows) if number not in (5, 18)]
    if as_language:
        assert bytes(token for token in data.splits["val"].tokens if token < 256) == b"".join(kept)
    else:
        split = data.splits["val"]
        assert split.index.tolist() == [row for row in range(20) if row not in (5, 18)]
        assert split.labels.tolist() == [row % 2 for row in split.index]
        assert [bytes(split[place]["input_ids"][:-1].tolist()) for place in range(18)] == kept


def test_rows_without_a_label_or_a_text_are_left_out(tmp_path: Path) -> None:
    rows = list(ROWS)
    rows[2], rows[3], rows[4] = (b"", b"1"), (b"two", b""), (b"", b"")
    path = written(tmp_path, "csv", rows)
    with pytest.raises(UserError, match=r"has 2 rows without a label: .* set --data\.on_bad_sample=skip"):
        Text(path, tokenizer="bytes").setup()
    data = Text(path, tokenizer="bytes", val_split="train", on_bad_sample="skip")
    data.setup()
    assert data.splits["train"].index.tolist() == [0, 1, *range(5, 20)]
    assert data.left_out == 3


def test_pairs_need_both_texts(tmp_path: Path) -> None:
    table = {"text": ["a"] * 8, "other": ["b"] * 4 + [None] + ["b"] * 3, "label": [0, 1] * 4}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    data = Text(
        str(tmp_path / "a.parquet"), pair_column="other", tokenizer="bytes", val_split="train", on_bad_sample="skip"
    )
    data.setup()
    assert data.splits["val"].index.tolist() == [0, 1, 2, 3, 5, 6, 7]


def test_the_predict_split_may_lack_labels_but_no_images(tmp_path: Path) -> None:
    parquet(tmp_path, [0, 1] * 10)
    parquet(tmp_path, [0, None, 1], images_with({2: None}, 3), name="test.parquet")
    data = Images(str(tmp_path), predict_split="test", on_bad_sample="skip")
    data.setup()
    assert (data.splits["predict"].index.tolist(), data.splits["predict"].labels.tolist()) == ([0, 1], [0, -1])  # type: ignore[union-attr]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path, [0, 1] * 2, images_with(dict.fromkeys(range(4)), 4))
    with pytest.raises(UserError, match=r"no row of split train can be read \(row 0: no image; .*; and 1 more\)"):
        Images(path, on_bad_sample="skip").setup()


@pytest.mark.parametrize("broken", ['{"text": ', "[1, 2"])
def test_what_damages_a_file_as_a_whole_is_an_error_either_way(broken: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a"})] * 3 + [broken]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: "):
        LanguageModeling(str(tmp_path / "a.jsonl"), tokenizer="bytes", on_bad_sample="skip").setup()


def test_a_cache_that_cannot_be_written_costs_a_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path, [0, 1] * 10, images_with(BAD_IMAGES))
    (Path(datasets.config.HF_DATASETS_CACHE) / "layersim").write_text("a file where the folder should be")
    data = Images(path, on_bad_sample="skip")
    data.setup()
    assert data.left_out == 5


@pytest.mark.parametrize("spoilt", ["", "[1]", '{"a": ', '{"a": "no row"}'])
def test_a_cache_that_is_spoilt_costs_a_reading(spoilt: str, tmp_path: Path) -> None:
    path = parquet(tmp_path, [0, 1] * 10, images_with(BAD_IMAGES))
    Images(path, on_bad_sample="skip").setup()
    for kept in (Path(datasets.config.HF_DATASETS_CACHE) / "layersim").iterdir():
        kept.write_text(spoilt)
    data = Images(path, on_bad_sample="skip")
    data.setup()
    assert data.left_out == 5


def test_a_checkpoint_knows_how_many_were_left_out(tmp_path: Path) -> None:
    path = parquet(tmp_path, [0, 1] * 10, images_with(BAD_IMAGES))
    skipping, mended = (Images(path, on_bad_sample="skip"), Images(path))
    skipping.setup()
    skipping.load_state_dict(skipping.state_dict())
    with pytest.warns(UserWarning, match="0 samples cannot be read now, but 5 could not when the check"):
        mended.load_state_dict(skipping.state_dict())
