"""Documents packed into blocks: none lost, none learnt twice, and nothing learnt at padding."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from layersim.data import LanguageModeling
from layersim.data.blocks import Boundaries, block_bounds
from layersim.errors import UserError

LINES = ["to be", "", "or not", "to be that is", " ", "the question"]
END = 256


def words(folder: Path, **special: str) -> str:
    """A folder with a tokenizer of whole words."""
    vocabulary = {word: number for number, word in enumerate(["</s>", *sorted(set(" ".join(LINES).split()))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return str(folder)


def text_file(folder: Path, lines: list[str] = LINES) -> str:
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    return str(folder / "train.txt")


def whole(path: str, **options: Any) -> LanguageModeling:
    """All documents for training, and again for validation."""
    data = LanguageModeling(path, **{"val_split": "train", "tokenizer": "bytes", **options})
    data.setup()
    return data


def stream(data: LanguageModeling, split: str = "val") -> list[int]:
    """The tokens of all blocks, one after the other, without padding."""
    blocks: dict[int, list[int]] = {}
    for batch in data._evaluation_loader(data.splits[split]):
        for index, row, mask in zip(batch["index"], batch["input_ids"], batch["attention_mask"], strict=True):
            blocks[int(index)] = row[mask.bool()].tolist()
    return [token for index in sorted(blocks) for token in blocks[index]]


documents = st.lists(st.integers(1, 40), max_size=30)


@settings(deadline=None)
@given(documents, st.integers(2, 12))
def test_joined_blocks_are_the_stream(lengths: list[int], block_size: int) -> None:
    offsets = np.cumsum([0, *lengths])
    bounds = block_bounds(offsets, block_size, boundaries="join")
    read = [token for first, end in bounds for token in range(first, end)]
    alone = offsets[-1] % block_size == 1  # a last token by itself predicts nothing
    assert read == list(range(offsets[-1] - alone))
    assert all(end - first == block_size for first, end in bounds[:-1])


@settings(deadline=None)
@given(documents, st.integers(2, 12))
def test_separate_blocks_never_span_documents(lengths: list[int], block_size: int) -> None:
    offsets = np.cumsum([0, *lengths])
    expected = []
    for start, length in zip(offsets, lengths, strict=False):
        cuts = [*range(0, length, block_size), length]
        expected += [[start + a, start + b] for a, b in pairwise(cuts) if b - a > 1]
    bounds = block_bounds(offsets, block_size, boundaries="separate")
    assert bounds.tolist() == expected


def test_the_documents_come_back_exactly(tmp_path: Path) -> None:
    data = whole(text_file(tmp_path), block_size=8, batch_size=2)
    expected = [token for line in LINES if line for token in [*line.encode(), END]]
    assert stream(data) == expected  # " " is a byte, "" is nothing
    assert bytes(token if token < 256 else 10 for token in expected).decode().split("\n")[:-1] == [
        line for line in LINES if line
    ]
    assert len(expected) == 42
    assert len(data.splits["train"]) == 6
    last = data.collate([data.splits["val"][place] for place in (4, 5)])
    assert last["index"].tolist() == [4, 5]
    assert last["attention_mask"].sum(dim=1).tolist() == [8, 2]


def test_labels_are_missing_exactly_at_padding(tmp_path: Path) -> None:
    """Also where the end of text pads: a real one is learnt."""
    tokenizer = words(tmp_path / "gpt", eos_token="</s>")
    data = whole(text_file(tmp_path), tokenizer=tokenizer, block_size=6, boundaries="separate", batch_size=8)
    batch = data.collate([data.splits["val"][place] for place in range(4)])
    # be 1, is 2, not 3, or 4, question 5, that 6, the 7, to 8
    expected = [[8, 1, 0, 0, 0], [4, 3, 0, 0, 0], [8, 1, 6, 2, 0], [7, 5, 0, 0, 0]]
    lengths = [3, 3, 5, 3]
    assert batch["input_ids"].tolist() == expected
    assert batch["attention_mask"].tolist() == [[1] * length + [0] * (5 - length) for length in lengths]
    assert batch["label"].tolist() == [
        row[:length] + [-100] * (5 - length) for row, length in zip(expected, lengths, strict=True)
    ]
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert {key: value.dtype for key, value in batch.items()} == dict.fromkeys(batch, torch.int64)
    assert sorted(batch) == ["attention_mask", "index", "input_ids", "label", "position"]


def test_padding_is_a_token_that_the_data_has(tmp_path: Path) -> None:
    """Not the tokenizer's own, for which a model of its vocabulary may have no embedding."""
    tokenizer = words(tmp_path / "gpt", eos_token="</s>", pad_token="<pad>")
    data = LanguageModeling(
        text_file(tmp_path), val_split="train", tokenizer=tokenizer, block_size=6, boundaries="separate", batch_size=8
    )
    data.check(SimpleNamespace(num_classes=9, input_size=None, vocabulary_size=9))
    (batch,) = data.val_dataloader()
    assert (batch["attention_mask"] == 0).any()
    assert batch["input_ids"].max() == 8


def test_separate_batches_pad_to_their_longest(tmp_path: Path) -> None:
    data = whole(text_file(tmp_path), block_size=100, boundaries="separate", batch_size=2)
    assert [batch["input_ids"].shape for batch in data.val_dataloader()] == [(2, 7), (2, 14), (1, 13)]


def test_paragraphs_and_files_as_documents(tmp_path: Path) -> None:
    path = text_file(tmp_path, ["a", "b", "", "c"])
    assert stream(whole(path, sample_by="paragraph")) == [*b"a\nb", END, *b"c\n", END]
    assert stream(whole(path, sample_by="document")) == [*b"a\nb\n\nc\n", END]
    datasets.Dataset.from_dict({"text": LINES}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"sample_by=paragraph is for txt files, which .*: leave --data\.sample_by out"):
        whole(str(tmp_path / "x.parquet"), sample_by="paragraph")


def test_every_source_gives_the_same_blocks(tmp_path: Path) -> None:
    lines = [line for line in LINES if line != " "]  # a csv file's reader takes this one for no row
    table = datasets.Dataset.from_dict({"words": [line or None for line in lines]})
    table.to_parquet(tmp_path / "x.parquet")
    table.to_json(tmp_path / "x.jsonl")
    table.to_csv(tmp_path / "x.csv", index=False)
    expected = stream(whole(text_file(tmp_path, lines)))
    for name in ("x.parquet", "x.jsonl", "x.csv"):
        data = whole(str(tmp_path / name), text_column="words")
        assert stream(data) == expected
    with pytest.raises(UserError, match=r"no column text, the data has words: change --data\.text_column"):
        whole(str(tmp_path / "x.parquet"))


def test_empty_documents_are_left_out_and_counted(tmp_path: Path, infos: pytest.LogCaptureFixture) -> None:
    tokenizer = words(tmp_path / "gpt", eos_token="</s>")
    whole(text_file(tmp_path), tokenizer=tokenizer, block_size=4, max_train_samples=2)
    assert infos.messages == [
        f"Data: the file {tmp_path}/train.txt; "
        "2 of 4 blocks in train (14 tokens of 4 documents, 2 without text left out, max_train_samples=2); "
        "4 blocks in val (14 tokens of 4 documents, 2 without text left out, train).",
        "4 of 4 documents in val are in train too, by their content.",
    ]


def test_blank_documents_are_read_and_are_neither_counted_nor_shared(
    tmp_path: Path, infos: pytest.LogCaptureFixture
) -> None:
    """As WikiText has them between paragraphs: their tokens stay, but they are no leak."""
    blank = [" ", "\u00a0", " \t"]
    text_file(tmp_path, ["one", "two", *blank])
    for val, leak in ((["three", "four"], []), (["one", "four"], ["1 of 2 documents in val are in train too, "])):
        (tmp_path / "validation.txt").write_text("\n".join([*val, *blank]) + "\n")
        infos.clear()
        data = whole(str(tmp_path), val_split="validation")
        assert stream(data) == [token for line in [*val, *blank] for token in [*line.encode(), END]]
        assert infos.messages[0].count("tokens of 2 documents and 3 blank ones") == 2
        assert infos.messages[1:] == [f"{line}by their content." for line in leak]


def test_the_end_is_held_out(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(10)]
    data = LanguageModeling(text_file(tmp_path, lines), tokenizer="bytes", val_fraction=0.25)
    data.setup()
    assert stream(data, "val") == [token for line in lines[7:] for token in [*line.encode(), END]]
    assert stream(data, "train") == [token for line in lines[:7] for token in [*line.encode(), END]]


def test_subsets_keep_the_numbers_of_their_blocks(tmp_path: Path) -> None:
    path = text_file(tmp_path)
    every = whole(path, block_size=4).splits["train"]
    some = whole(path, block_size=4, max_train_samples=3, max_eval_samples=2)
    assert [len(split) for split in some.splits.values()] == [3, 2]
    for sample in some.splits["train"]:  # type: ignore[attr-defined]
        assert np.array_equal(sample["input_ids"], every[sample["index"]]["input_ids"])
    assert np.array_equal(
        some.splits["train"].index, whole(path, block_size=4, max_train_samples=3).splits["train"].index
    )


def test_the_backbones_own_tokenizer_and_its_limits(tmp_path: Path) -> None:
    path, tokenizer = text_file(tmp_path), words(tmp_path / "gpt", eos_token="</s>")
    model = SimpleNamespace(
        num_classes=9, input_size=None, tokenizer_name=tokenizer, vocabulary_size=9, max_positions=16
    )
    data = whole(path, tokenizer=None, block_size=16)
    with pytest.raises(UserError, match=r"num_classes is known once the tokenizer is"):
        _ = data.num_classes
    data.check(model)
    assert data.num_classes == 9
    assert stream(data)[:3] == [8, 1, 0]
    message = r"reads 16 tokens at most, but blocks have 17: set --data\.block_size 16"
    with pytest.raises(UserError, match=message):
        whole(path, tokenizer=None, block_size=17).check(model)
    with pytest.raises(UserError, match=r"tokens 0\.\.8, but the train data has 256: set --data\.tokenizer"):
        whole(path, block_size=16).check(model)
    with pytest.raises(UserError, match=r"an end of text, but the tokenizer .*none has none: change --data\.tokenizer"):
        whole(path, tokenizer=words(tmp_path / "none"))


def test_a_split_without_a_block(tmp_path: Path) -> None:
    model = SimpleNamespace(num_classes=258, input_size=None)
    with pytest.raises(UserError, match=r"the train data is empty"):
        whole(text_file(tmp_path, ["", ""])).check(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 1}, r"block_size must be at least 2, got 1"),
        (
            {"val_fraction": 0.0},
            r"Expected val_fraction above 0 and below 1, but got 0\.0\. Change --data\.val_fraction",
        ),
        ({"max_eval_samples": 0}, r"max_eval_samples must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LanguageModeling("x.txt", **options)


@pytest.mark.parametrize("boundaries", ["join", "separate"])
def test_no_documents(boundaries: Boundaries) -> None:
    assert block_bounds(np.array([0]), 4, boundaries=boundaries).shape == (0, 2)
