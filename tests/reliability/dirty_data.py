"""Dirt in data: each sort of it in each format that can hold it, met with `on_bad_sample=error` and with `skip`."""

import io
import random
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from layersim.data import Images, LanguageModeling, SplitDataModule, Text
from layersim.errors import UserError
from tests.data.pictures import BACKBONE, NAMES, encoded, picture
from tests.reliability.tally import Tally

INJECTED = (
    "One sample (or two, or the whole file) of 24 is spoilt, in a folder of images, tables of images, tables of texts "
    "(csv, tsv, jsonl, parquet) and corpora (txt, csv, jsonl, parquet). With `error` the data must be refused in one "
    "line that names the row, the line or the file; with `skip` every other sample must be read once, and those left "
    "out counted. Which images cannot be read Pillow alone says."
)
COUNT = 251
ROWS = 24
TABLES = ("csv", "tsv", "jsonl", "parquet")
CORPORA = ("txt", "csv", "jsonl", "parquet")


@dataclass(frozen=True)
class Kind:
    """A sort of dirt in a format."""

    name: str
    lay: Callable[[Path, set[int]], Callable[..., SplitDataModule]]
    """Writes the data, dirty in these rows, and gives what opens them."""
    whole: bool = False
    """Whether a file is spoilt as a whole, which is an error either way."""
    lost: Callable[[Path, set[int]], set[int]] = lambda folder, rows: rows
    """Which rows cannot be read."""
    told: bool = True
    """Whether `error` refuses it: documents without text are left out either way."""


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG of that size, whatever its data are."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + made


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    picture(1, size=40).save(file, kind)
    return file.getvalue()


def flipped(content: bytes, *places: int) -> bytes:
    changed = bytearray(content)
    for place in places:
        changed[place] ^= 0xFF
    return bytes(changed)


GOOD = encoded(picture(1, size=40))
BROKEN = {
    "nothing": b"",
    "one byte": b"\x89",
    "a signature alone": GOOD[:8],
    "cut in the header": GOOD[:20],
    "cut at a third": GOOD[: len(GOOD) // 3],
    "cut near the end": GOOD[:-60],
    "cut before its end mark": GOOD[:-12],
    "a wrong signature": flipped(GOOD, 0),
    "a wrong checksum of the header": flipped(GOOD, 30),
    "flipped bytes in the middle": flipped(GOOD, 200, 201, 300, 301),
    "zeros": bytes(500),
    "noise": np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes(),
    "text": b"this is no picture\n",
    "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "a pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "an archive": b"PK\x03\x04" + bytes(60),
    "a hundred million pixels": png(10_000, 10_000, zlib.compress(bytes(100))),
    "a decompression bomb": png(100_000, 100_000, zlib.compress(bytes(100))),
    "no pixels": png(0, 0, zlib.compress(b"")),
    "too little data": png(40, 40, zlib.compress(bytes(100))),
    "data that are not compressed": png(40, 40, bytes(100)),
    **{f"a {kind} cut in half": saved(kind)[:300] for kind in ("jpeg", "gif", "bmp", "tiff", "webp")},
}


def unreadable(content: bytes) -> bool:
    """By Pillow alone, and by the number of pixels."""
    try:
        with warnings.catch_warnings(action="ignore"), PIL.Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > 2**26:
                return True
            image.load()
    except Exception:
        return True
    return False


def image_folder(content: bytes) -> Callable[[Path, set[int]], Callable[..., SplitDataModule]]:
    def lay(folder: Path, rows: set[int]) -> Callable[..., SplitDataModule]:
        for number in range(ROWS):
            place = folder / "train" / NAMES[number * 2 // ROWS] / f"{number:02}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content if number in rows else encoded(picture(number)))
        return lambda **options: Images(str(folder), **options)

    return lay


def image_table(cell: Callable[[Path], Any]) -> Callable[[Path, set[int]], Callable[..., SplitDataModule]]:
    def lay(folder: Path, rows: set[int]) -> Callable[..., SplitDataModule]:
        cells = [stored(encoded(picture(number)))(folder) for number in range(ROWS)]
        for row in rows:
            cells[row] = cell(folder)
        labels = [number % 2 for number in range(ROWS)]
        pq.write_table(pa.table({"image": cells, "label": labels}), folder / "train.parquet")
        return lambda **options: Images(str(folder / "train.parquet"), **options)

    return lay


def stored(content: bytes) -> Callable[[Path], Any]:
    return lambda folder: {"bytes": content, "path": None}


def pointing(name: str, content: bytes | None = None) -> Callable[[Path], Any]:
    def cell(folder: Path) -> Any:
        if content is not None:
            (folder / name).write_bytes(content)
        return {"bytes": None, "path": str(folder / name)}

    return cell


NO_TEXTS = {
    "a byte 0xff": b"caf\xff",
    "Latin-1": "café".encode("latin-1"),
    "a cut character": "€".encode()[:2],
    "an overlong form": b"\xc0\xaf",
    "half of a surrogate pair": b"\xed\xa0\x80",
    "a lone continuation": b"a\x80b",
    "a character beyond the last": b"\xf4\x90\x80\x80",
    "Shift JIS": "日本".encode("shift_jis"),
    "GB 18030": "中文".encode("gb18030"),
    "the byte NUL": b"a\0b",
}


def good(row: int) -> bytes:
    return b"text number %d \xe2\x82\xac" % row


def table(kind: str, as_language: bool, bad: bytes | None, label: bytes | None = b"") -> Any:
    """Lays a file of texts, some of which are `bad` (None: missing), or have another label (None: missing)."""

    def lay(folder: Path, rows: set[int]) -> Callable[..., SplitDataModule]:
        path = folder / f"train.{kind}"
        texts = [bad if row in rows else good(row) for row in range(ROWS)]
        labels = [label if row in rows and label != b"" else b"%d" % (row % 2) for row in range(ROWS)]
        if kind == "parquet":
            pq.write_table(pa.table({"text": _strings(texts), "label": _strings(labels)}), path)
        else:
            path.write_bytes(b"\n".join(_lines(kind, texts, labels)) + b"\n")
        make: Any = LanguageModeling if as_language else Text
        return lambda **options: make(str(path), tokenizer="bytes", **options)

    return lay


def _strings(values: list[bytes | None]) -> pa.Array:
    """Of bytes that may be no UTF-8, as a careless program writes them."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), raw.buffers())


def _lines(kind: str, texts: list[bytes | None], labels: list[bytes | None]) -> Iterator[bytes]:
    if kind == "txt":
        yield from (text or b"" for text in texts)
        return
    if kind == "jsonl":
        for text, label in zip(texts, labels, strict=True):
            told = b"null" if text is None else b'"%s"' % text.replace(b"\0", rb"\u0000")
            yield b'{"text": %s, "label": %s}' % (told, b"null" if label is None else b'"%s"' % label)
        return
    between = {"csv": b",", "tsv": b"\t"}[kind]
    yield between.join([b"text", b"label"])
    for text, label in zip(texts, labels, strict=True):
        yield between.join([text or b"", label or b""])


def spoilt(kind: str, as_language: bool, change: Callable[[bytes], bytes]) -> Any:
    """Lays a file that is changed as a whole."""
    lay_good = table(kind, as_language, None)

    def lay(folder: Path, rows: set[int]) -> Callable[..., SplitDataModule]:
        opens: Callable[..., SplitDataModule] = lay_good(folder, set())
        path = folder / f"train.{kind}"
        path.write_bytes(change(path.read_bytes()))
        return opens

    return lay


WHOLE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "an empty file": (lambda content: b"", "csv tsv jsonl txt parquet"),
    "zeros": (lambda content: bytes(300), "csv tsv jsonl txt parquet"),
    "UTF-16": (lambda content: content.decode().encode("utf-16"), "csv tsv jsonl txt"),
    "a header alone": (lambda content: content.split(b"\n")[0] + b"\n", "csv tsv"),
    "a wrong header": (lambda content: content.replace(b"text", b"words", 1), "csv tsv"),
    "a cell too many": (lambda content: content + b"a,b,c,d\n", "csv"),
    "a quote that never closes": (lambda content: content + b'"a,1\nb,0\n', "csv"),
    "a cut line": (lambda content: content[:-9], "jsonl"),
    "a line that is no JSON": (lambda content: content + b"{'text': 1}\n", "jsonl"),
    "numbers among the texts": (lambda content: content + b'{"text": 3, "label": "1"}\n', "jsonl"),
    "lists among the texts": (lambda content: content + b'{"text": [3], "label": "1"}\n', "jsonl"),
    "a file cut in half": (lambda content: content[: len(content) // 2], "parquet"),
    "a file without its end": (lambda content: content[:-8], "parquet"),
    "a marker alone": (lambda content: content[:4], "parquet"),
    "another format": (lambda content: GOOD, "csv tsv jsonl txt parquet"),
}


def kinds() -> list[Kind]:
    """All of them."""
    found = []
    for name, content in BROKEN.items():
        lost = (lambda folder, rows: rows) if unreadable(content) else (lambda folder, rows: set())
        found.append(Kind(f"image folder: {name}", image_folder(content), lost=lost))
        found.append(Kind(f"image table: {name}", image_table(stored(content)), lost=lost))
        found.append(Kind(f"image table of paths: {name}", image_table(pointing("own.png", content)), lost=lost))
    missing = {"null": lambda folder: None, "neither bytes nor path": lambda folder: {"bytes": None, "path": None}}
    missing |= {"a path to nowhere": pointing("none.png"), "a path to a folder": pointing("")}
    found += [Kind(f"image table: {name}", image_table(cell)) for name, cell in missing.items()]
    for name, content in NO_TEXTS.items():
        found += [Kind(f"{kind} of texts: {name}", table(kind, False, content)) for kind in TABLES]
        found += [Kind(f"{kind} corpus: {name}", table(kind, True, content)) for kind in CORPORA]
        labelled = () if name == "the byte NUL" else ("csv", "parquet")
        found += [Kind(f"{kind} of texts, label: {name}", table(kind, False, good(0), content)) for kind in labelled]
    for kind in TABLES:
        found.append(Kind(f"{kind} of texts: missing", table(kind, False, None)))
        found.append(Kind(f"{kind} of texts, label: missing", table(kind, False, good(0), None)))
        if kind != "tsv":
            found.append(Kind(f"{kind} corpus: missing", table(kind, True, None), told=False))
    for name, (change, formats) in WHOLE.items():
        for kind in formats.split():
            for as_language in {kind == "txt", True}:
                what = "corpus" if as_language else "of texts"
                found.append(Kind(f"{kind} {what}: {name}", spoilt(kind, as_language, change), whole=True))
    return found


def run(count: int, seed: int, folder: Path) -> Tally:
    datasets.disable_progress_bars()
    tally, every, generator = Tally(), kinds(), random.Random(seed)
    generator.shuffle(every)
    with patch.object(datasets.config, "HF_DATASETS_CACHE", folder / "cache"):
        for number in range(count):
            kind, rows = every[number % len(every)], set(generator.sample(range(ROWS), generator.choice((1, 2))))
            for mode in ("error", "skip"):
                place = folder / str(number) / mode
                place.mkdir(parents=True)
                try:
                    tally.outcomes[met(kind, rows, mode, place)] += 1
                except Exception as error:  # whatever else comes is what is looked for
                    told = f"{type(error).__name__}: {str(error)[:300]}"
                    tally.lost.append(f"{kind.name}, rows {sorted(rows)}, {mode}: {told}")
            shutil.rmtree(place.parent)
    return tally


def met(kind: Kind, rows: set[int], mode: str, place: Path) -> str:
    """What came, in words. Raises AssertionError where it should not have."""
    make = kind.lay(place, rows)
    lost = set(range(ROWS)) if kind.whole else kind.lost(place, rows)
    refused = kind.whole or (mode == "error" and bool(lost) and kind.told)
    try:
        data = make(on_bad_sample=mode, find_duplicates=False)
        data.check(BACKBONE)
        read = every_sample(data)
    except UserError as error:
        said = str(error)
        assert refused, said
        assert "\n" not in said, said
        where = [f"row {row}" for row in lost] + [f"line {row + 1 + header}" for row in lost for header in (0, 1)]
        where += [f"{len(lost)} rows without a label", "--data." if kind.whole else str(place)]
        assert any(each in said for each in where), said
        return "refused in one line"
    assert not refused, f"taken: {len(read)} samples"
    expected = [row for row in range(ROWS) if row not in lost]
    assert read == expected, f"read {read} of {expected}"
    if mode == "skip":
        assert data.left_out == len(lost), f"{data.left_out} left out of {len(lost)}"
    return "left out and counted" if lost else "can be read, and was"


def every_sample(data: SplitDataModule) -> list[int]:
    """The rows that training and validation read, sorted."""
    if not isinstance(data, LanguageModeling):
        splits = [data.splits["train"], data.splits["val"]]
        return sorted(int(split[place]["index"]) for split in splits for place in range(len(split)))
    stream = [int(token) for role in ("train", "val") for token in data.splits[role].tokens]  # type: ignore[attr-defined]
    documents = bytes(token if token < 256 else 0 for token in stream).split(b"\0")[:-1]
    places = {good(row): row for row in range(ROWS)}
    return [places[document] for document in documents]
