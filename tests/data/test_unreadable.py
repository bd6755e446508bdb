"""What cannot be read is told in one line, with the file and the place in it."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchvision.transforms import v2

from layersim.data import Images, LanguageModeling, Text, open_tokenizer
from layersim.data.tokenizers import PretrainedTokenizer
from layersim.errors import UserError
from tests.data.pictures import BACKBONE, encoded, parquet, picture
from tests.data.texts import bare
from tests.reliability.dirty_data import png

GOOD_JSON = b'{"text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"a\n" * 40 + b"b\xff\n", "a.txt, line 41: invalid byte 0xff, expected UTF-8"),
        ("a.txt", "a\n".encode("utf-16"), "a.txt, line 1: invalid byte 0xff, expected UTF-8"),
        ("a.csv", b"text\na\nb\xe9\n", "a.csv, line 3: invalid byte 0xe9, expected UTF-8"),
        ("a.tsv", b"text\na\nb\xe9\n", "a.tsv, line 3: invalid byte 0xe9, expected UTF-8"),
        ("a.jsonl", GOOD_JSON * 2 + b'{"text": "\xfe"}\n', "a.jsonl, line 3: invalid byte 0xfe, expected UTF-8"),
        ("a.jsonl", GOOD_JSON + b'{"text": \n', "a.jsonl, line 2: Expecting value"),
        ("a.json", b'[{"text": "a"},\n {"text" "b"}]', "a.json, line 2: Expecting ':' delimiter"),
        ("a.csv", b"text\na\nb,c,d\n", "Expected 1 fields in line 3, saw 3"),
        ("a.parquet", b"PAR1", "a.parquet: Parquet file size is 4 bytes"),
        ("a.arrow", b"no", "File is too small: 2"),
        *((f"a.{suffix}", b"", f"a.{suffix} is empty") for suffix in ("txt", "csv", "json", "parquet", "arrow")),
        ("a.csv", b"text\n", "has no rows in its split train"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=f"^{path} .*{re.escape(told)}.* [Cc]hange --data.path") as caught:
            LanguageModeling(str(path), tokenizer="bytes").setup()
        assert "\n" not in str(caught.value)


def test_the_broken_one_of_several_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n")
    (tmp_path / "b.txt").write_bytes(b"fine\nno\xff\n")
    (tmp_path / "c.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"/b\.txt, line 2: invalid byte 0xff"):
        LanguageModeling(str(tmp_path), tokenizer="bytes").setup()


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "a.csv").write_bytes(b"text\na\nb,c,d\n")

    def refused(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)  # as the library's own look at what is broken
    with pytest.raises(UserError, match=rf"^{path} cannot be read as a data set: .*Expected 1 fields.*--data\.path$"):
        LanguageModeling(str(path), tokenizer="bytes").setup()


@pytest.mark.parametrize(
    ("name", "why"),
    [("x" * 300, "File name too long"), ("~nobody-of-this-name/a.csv", "Could not determine home directory")],
)
def test_a_name_that_no_path_can_have_is_told(name: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} cannot be opened: .*{why}.*\. Change --data\.path$"):
        LanguageModeling(name, tokenizer="bytes").setup()


LINES = [json.dumps({"text": str(number)}) for number in range(4)]
PRETTY = "[\n" + ",\n".join(LINES) + "\n]"
WHOLE = [PRETTY, PRETTY.replace("\n", ""), "\n".join(LINES), "\n\n".join(LINES), "\ufeff" + PRETTY, "\ufeff" + LINES[0]]


@pytest.mark.parametrize(
    "whole", WHOLE, ids=["pretty", "one line", "lines", "with empty lines", "marked", "a marked line"]
)
@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (PRETTY[:-9], "line 5: Unterminated string"),
        (PRETTY + " x", "line 6: Extra data"),
        ("\n".join(LINES)[:-1], "line 4: Expecting ',' delimiter"),
        (LINES[0] + "\n" + LINES[1] + " x", "line 2: Extra data"),
    ],
    ids=["cut", "followed", "line cut", "line followed"],
)
def test_a_json_file_that_can_be_read_is_not_blamed_for_another(
    whole: str, broken: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "train-0.json").write_text(whole)
    LanguageModeling(str(tmp_path), tokenizer="bytes", val_split="train").setup()
    (tmp_path / "train-1.json").write_text(broken)
    with pytest.raises(UserError, match=rf"/train-1\.json, {told}"):
        LanguageModeling(str(tmp_path), tokenizer="bytes", val_split="train").setup()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("files", [0, 1])
def test_a_stored_data_set_without_rows(files: int, streaming: bool, tmp_path: Path) -> None:
    """`datasets` writes it without a file, and cannot open it then."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("int64")})
    empty = datasets.Dataset.from_dict({"text": [], "label": []}, features)
    empty.save_to_disk(tmp_path, **({"num_shards": 1} if files else {}))
    for kind in (Text, LanguageModeling):
        data = kind(str(tmp_path), tokenizer="bytes", val_split="train", streaming=streaming)  # type: ignore[operator]
        with pytest.raises(UserError, match=rf"{tmp_path}.* has no rows.* [Cc]hange --data\.path"):
            data.check(SimpleNamespace(num_classes=258))


def test_strings_of_a_parquet_file_that_are_no_utf8(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff")])
    pq.write_table(pa.table({"text": texts, "label": texts}), tmp_path / "a.parquet")
    for kind, option in ((LanguageModeling, "text_column"), (Text, "label_column")):
        with pytest.raises(
            UserError,
            match=rf"row 1: invalid byte 0xff, expected UTF-8\. Change --data\.{option}, or set ",
        ):
            kind(str(tmp_path / "a.parquet"), tokenizer="bytes").setup()  # type: ignore[operator]


def test_a_column_of_texts_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD_JSON + b'{"text": 3}\n')
    with pytest.raises(UserError, match=r"texts must be strings, but column text .* change --data\.text_column"):
        LanguageModeling(str(tmp_path / "a.jsonl"), tokenizer="bytes").setup()


@pytest.mark.parametrize(
    "files",
    [{"README.md": "---\n: [\n---\n", "a.txt": "a"}, {"state.json": "{"}, {"dataset_dict.json": "no"}, {"b.py": ""}],
)
def test_folders_that_cannot_be_read(files: dict[str, str], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be read as a data set: .* Change --data\.path$"):
        LanguageModeling(str(tmp_path), tokenizer="bytes").setup()


def huge(side: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("1", (side, side)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (None, "no image"),
        ({"bytes": None, "path": None}, "no image"),
        ({"bytes": None, "path": "/nowhere.png"}, "/nowhere.png is no image that can be read: .*No such file"),
        ({"bytes": encoded(picture(0))[:60], "path": None}, "no image that can be read: image file is truncated"),
        ({"bytes": huge(20_000), "path": None}, r"an image of 400,000,000 pixels, more than --data\.max_pixels"),
    ],
)
def test_images_that_cannot_be_read(image: Any, told: str, tmp_path: Path) -> None:
    check_told(image, told, 0, tmp_path)


def test_an_image_that_a_loaders_worker_cannot_read(tmp_path: Path) -> None:
    """Of whose error torch would show the traceback."""
    check_told({"bytes": encoded(picture(0))[:60], "path": None}, "no image that can be read: image file", 1, tmp_path)


def check_told(image: Any, told: str, num_workers: int, tmp_path: Path) -> None:
    images = [{"bytes": encoded(picture(number)), "path": None} for number in range(5)] + [image]
    data = Images(parquet(tmp_path, [0, 1] * 3, images), val_split="train", num_workers=num_workers)
    data.check(BACKBONE)
    with pytest.raises(UserError, match=rf"^row 5 of split train: {told}.*Leave it out of the data, or set ") as caught:
        list(data.val_dataloader())
    assert "\n" not in str(caught.value)


def test_large_images_are_refused_or_scaled(tmp_path: Path) -> None:
    """Without a word of Pillow's, and without decoding those that are refused."""
    path = parquet(tmp_path, [0, 1] * 2, [png(10_000, 10_000, b"")] * 4)
    with pytest.raises(UserError, match=r"row 0 of split train: an image of 100,000,000 pixels, more than --data"):
        Images(path, val_split="train").check(BACKBONE)
    small = parquet(tmp_path, [0, 1] * 2, [huge(200)] * 4)
    data = Images(small, val_split="train", max_pixels=400, large_images="scale", eval_transforms=[])
    data.setup()
    data.adapt(BACKBONE)
    assert data.splits["val"][0]["image"].shape == (3, 20, 20)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"train_transforms": [v2.RandomCrop(50)]}, r"Required crop size \(50, 50\) is larger"),
        ({"std": [0.0, 1.0, 1.0]}, "std evaluated to zero"),
    ],
)
def test_transforms_that_fail(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    data = Images(parquet(tmp_path, [0, 1] * 10), **options)
    with pytest.raises(UserError, match=rf"transforms fail on an image of shape \(3, 6, 6\): {told}.*Change --data\."):
        data.check(BACKBONE)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": "{"},
        {"tokenizer.json": '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'},
        {"tokenizer_config.json": '{"tokenizer_class": "Nothing"}'},
    ],
)
def test_broken_tokenizers(files: dict[str, str], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"^no tokenizer could be opened from {tmp_path}: .* or to bytes$") as caught:
        open_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_knows_no_word_for_the_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = PretrainedTokenizer(bare(tmp_path / "words", eos_token="</s>"))

    def missing(*_: Any, **__: Any) -> None:
        raise Exception("WordLevel error: Missing [UNK] token from the vocabulary")  # as `tokenizers` raises it

    monkeypatch.setattr(tokenizer, "tokenizer", missing)
    with pytest.raises(UserError, match=r"words cannot read the texts: WordLevel error: .* Change --data\.tokenizer$"):
        tokenizer.encode(["unheard of"])
