"""Texts with labels: every kind of file, what a batch holds, and what is refused."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import jsonargparse
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch

from layersim.data import ByteTokenizer, Text
from layersim.data.sentence_split import SentenceSplit
from layersim.data.sources import Source
from layersim.data.splits import shared_samples
from layersim.errors import UserError
from tests.data.texts import (
    LABELS,
    LENGTHS,
    SENTENCES,
    VOCABULARY,
    all_of,
    bare,
    csv,
    folder_of_tsv,
    folder_of_zipped_tsv,
    json_lines,
    parquet,
    rows,
    tsv,
    whole,
    zipped_csv,
)


@pytest.mark.parametrize("source", [csv, tsv, json_lines, parquet, folder_of_tsv, zipped_csv, folder_of_zipped_tsv])
def test_every_source_gives_the_same_batch(source: Any, tmp_path: Path, bert: str) -> None:
    """Also "null", "NA" and a lone quotation mark, which a reader of csv would take for something else."""
    batch = all_of(whole(source(tmp_path), bert), "val")
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        "input_ids": (torch.int64, (8, 7)),
        "token_type_ids": (torch.int64, (8, 7)),
        "attention_mask": (torch.int64, (8, 7)),
        "label": (torch.int64, (8,)),
        "index": (torch.int64, (8,)),
        "position": (torch.int64, (8,)),
    }
    expected = torch.zeros(8, 7, dtype=torch.int64)
    for place, sentence in zip(expected, SENTENCES, strict=True):
        tokens = [2, *(VOCABULARY[word] for word in sentence.split()), 3]
        place[: len(tokens)] = torch.tensor(tokens)
    assert torch.equal(batch["input_ids"], expected)
    assert batch["attention_mask"].sum(dim=1).tolist() == LENGTHS
    assert torch.equal(batch["attention_mask"], (expected != 0).long())
    assert batch["token_type_ids"].sum() == 0
    assert batch["label"].tolist() == LABELS
    assert batch["index"].tolist() == list(range(8))


def test_held_out_share_and_subsets(tmp_path: Path, bert: str) -> None:
    data = Text(parquet(tmp_path), tokenizer=bert, text_column="sentence", val_fraction=0.25, max_train_samples=4)
    data.setup()
    train, val = (data.splits[name].index for name in ("train", "val"))
    assert (len(train), len(val), set(train) & set(val)) == (4, 2, set())
    batch = all_of(data, "train")
    for tokens, mask, label, index in zip(*(batch[key] for key in ("input_ids", "attention_mask", "label", "index"))):  # noqa: B905
        words = [VOCABULARY[word] for word in SENTENCES[index].split()]
        assert tokens[mask.bool()].tolist() == [2, *words, 3]
        assert label == LABELS[index]


def test_pairs(tmp_path: Path, bert: str) -> None:
    path = parquet(tmp_path, rows(["a film", "good"], [0, 1], hypothesis=["bad", "a good film"]))
    batch = all_of(whole(path, bert, pair_column="hypothesis"), "train")
    assert batch["input_ids"].tolist() == [[2, 4, 7, 3, 6, 3, 0], [2, 5, 3, 4, 5, 7, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 7]
    batch = all_of(whole(path, "bytes", pair_column="hypothesis"), "train")
    assert batch["input_ids"][0].tolist() == [*b"a film", 256, *b"bad", 256, *[257] * 6]
    assert "token_type_ids" not in batch


def test_padding_reaches_to_a_batchs_longest_only(tmp_path: Path, bert: str) -> None:
    data = whole(parquet(tmp_path), bert, eval_batch_size=2)
    read = [LENGTHS[place] for place in data.splits["val"].order]
    assert [batch["input_ids"].shape[1] for batch in data.val_dataloader()] == list(map(max, read[::2], read[1::2]))


def test_long_texts_are_cut_and_counted(
    tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "propagate", True)
    path = parquet(tmp_path, rows(["good " * 6, "good " * 7, "a film", "bad " * 40], [0, 1, 0, 1]))
    with caplog.at_level(logging.INFO):
        data = whole(path, bert, max_length=8)
    assert [r.message for r in caplog.records if r.message.startswith("Texts cut")] == [
        "Texts cut to 8 tokens: 2 of 4 in train, 2 of 4 in val (--data.max_length)."
    ]
    batch = all_of(data, "train")
    assert batch["attention_mask"].sum(dim=1).tolist() == [8, 8, 4, 8]
    assert batch["input_ids"][3].tolist() == [2, *[6] * 6, 3]
    message = (
        r"row 1 of split train has 9 tokens, but 8 is the most: raise --data\.max_length .* --data\.truncation cut"
    )
    with pytest.raises(UserError, match=message):
        whole(path, bert, max_length=8, truncation="refuse")


def test_slices_of_texts_know_what_they_share(tmp_path: Path, bert: str) -> None:
    splits = {"train_split": "train[:6]", "val_split": "train[4:]", "test_split": "train[6:]"}
    data = Text(csv(tmp_path), text_column="sentence", tokenizer=bert, **splits)
    data.setup()
    assert shared_samples(data.splits["train"], data.splits["val"]) == 2
    assert shared_samples(data.splits["train"], data.splits["test"]) == 0


def test_empty_texts(tmp_path: Path, bert: str) -> None:
    path = parquet(tmp_path, rows(["good", "", " "], [1, 0, 0]))
    batch = all_of(whole(path, bert), "train")
    assert batch["input_ids"].tolist() == [[2, 5, 3], [2, 3, 0], [2, 3, 0]]
    with pytest.raises(
        UserError, match=r"row 1 of split train is empty \(2 such rows\): remove them .* --data\.tokenizer"
    ):
        whole(path, bare(tmp_path / "gpt", eos_token="</s>"))
    missing = parquet(tmp_path, rows(["good", None], [1, 0]), "missing")
    with pytest.raises(UserError, match=r"row 1 of split train has no text: remove it from the data"):
        whole(missing, bert)


def test_columns(tmp_path: Path, bert: str) -> None:
    path = parquet(tmp_path)
    with pytest.raises(UserError, match=r"no column text, the data has sentence, label: change --data\.text_column"):
        Text(path, tokenizer=bert, val_split="train").setup()
    with pytest.raises(UserError, match=r"no column other, .* change --data\.pair_column"):
        whole(path, bert, pair_column="other")
    with pytest.raises(UserError, match=r"texts must be strings, but column label holds int64: .* --data\.text_column"):
        Text(path, tokenizer=bert, text_column="label", val_split="train").setup()


def test_predicting_glues_secret_labels(tmp_path: Path, bert: str) -> None:
    folder = tmp_path / "glue"
    parquet(folder)
    parquet(folder, rows(["good", "bad"], [-1, -1]), "test")
    data = whole(str(folder), bert, predict_split="test")
    batch = all_of(data, "predict")
    assert "label" not in batch
    assert batch["input_ids"].tolist() == [[2, 5, 3], [2, 6, 3]]
    with pytest.raises(UserError, match=r"the test data has -1, which often marks samples without a label"):
        whole(str(folder), bert, test_split="test").check(SimpleNamespace(num_classes=2, input_size=None))


def test_string_labels_travel_in_the_checkpoint(tmp_path: Path, bert: str) -> None:
    def named(*names: str) -> Text:
        return whole(parquet(tmp_path, rows(SENTENCES, [names[label] for label in LABELS]), "-".join(names)), bert)

    data = named("wrong", "right")
    assert data.class_names == ["right", "wrong"]  # in sorted order
    labels = data.splits["train"].labels
    assert labels is not None
    assert labels.tolist() == [1 - label for label in LABELS]
    kept = data.state_dict()
    assert kept == {"class_names": ["right", "wrong"]}
    named("right", "wrong").load_state_dict(kept)
    message = r"trained on the classes right, wrong, in this order, but the data has left, right: change --data, or"
    with pytest.raises(UserError, match=message):
        named("right", "left").load_state_dict(kept)
    numbers = whole(parquet(tmp_path), bert)
    assert numbers.state_dict() == {}
    numbers.load_state_dict(kept)  # integers have no names to compare
    assert numbers.class_names is None


def test_evaluation_grouped_by_length_reads_the_same_samples_at_the_same_positions(tmp_path: Path, bert: str) -> None:
    def seen(**options: Any) -> dict[int, tuple[list[int], int, int]]:
        data = whole(parquet(tmp_path), bert, eval_batch_size=2, **options)
        found = {}
        for batch in data.val_dataloader():
            for place, index in enumerate(batch["index"].tolist()):
                tokens = batch["input_ids"][place][batch["attention_mask"][place].bool()].tolist()
                found[index] = (tokens, int(batch["label"][place]), int(batch["position"][place]))
        return found

    plain, grouped = seen(), seen(length_bucketing=True)
    assert grouped == plain
    assert [position for *_, position in plain.values()] == list(range(8))
    read = [LENGTHS[index] for index in grouped]
    assert sorted(map(sorted, zip(read[::2], read[1::2], strict=True))) == [[3, 3], [3, 3], [5, 5], [6, 7]]


def test_bucketing_pads_less() -> None:
    generator = np.random.default_rng(0)
    split = SentenceSplit(
        "x", np.arange(400), None, pa.array(["a" * n for n in generator.integers(1, 90, 400)]), seed=0
    )
    split.encode(ByteTokenizer(), 256, "cut")
    data = Text("nowhere", tokenizer="bytes", batch_size=8)
    data._encode({"train": split}, ByteTokenizer())
    data.splits = {"train": split}

    def padding() -> float:
        batches = list(data.train_dataloader())
        assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(400))
        return 1 - sum(b["attention_mask"].sum().item() for b in batches) / sum(b["input_ids"].numel() for b in batches)

    mixed = padding()
    split.lengths = split.tokens.lengths
    assert padding() < 0.03
    assert mixed > 0.3  # the control


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"val_fraction": 1.0},
            r"Expected val_fraction above 0 and below 1, but got 1\.0\. Change --data\.val_fraction",
        ),
        ({"max_length": 7}, r"max_length must be at least 8, got 7"),
        ({"max_train_samples": 0}, r"max_train_samples must be at least 1, got 0"),
        ({"batch_size": "8"}, r"^batch_size must be a whole number of at least 1, got '8': change --data\.batch_size$"),
        (
            {"batch_size": 2.5},
            r"^batch_size must be a whole number of at least 1, got 2\.5: change --data\.batch_siz",
        ),
        ({"max_length": "9"}, r"^max_length must be a whole number of at least 8, got '9': change --data\.max_length$"),
        ({"seed": "1"}, r"^A seed is a whole number from 0 to \d+, but got '1'\. Change --data\.seed\.$"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Text("data.csv", **options)


def test_a_recipe_reaches_every_option(tmp_path: Path) -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(Text, "data")
    config = parser.parse_args(["--data.path=x.tsv", "--data.truncation=refuse", "--data.batch_size=3"])
    data = parser.instantiate_classes(config).data
    assert (data.truncation, data.batch_size, data.tokenizer_name) == ("refuse", 3, None)


def test_tsv_is_taken_as_it_stands(tmp_path: Path) -> None:
    """The control: read as csv, the quotation mark that opens swallows the rows up to the one that closes."""
    (tmp_path / "x.tsv").write_text('sentence\tlabel\n"a\t0\nb\t1\nc"\t0\n')
    assert len(datasets.load_dataset("csv", data_files=str(tmp_path / "x.tsv"), sep="\t", split="train")) == 1
    assert len(whole(str(tmp_path / "x.tsv"), "bytes").splits["train"]) == 3


def test_a_folder_of_images_with_a_table_is_no_table(tmp_path: Path) -> None:
    """The options for reading csv would be refused by the reader of images."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        PIL.Image.new("L", (2, 2)).save(tmp_path / name / "a.png")
    (tmp_path / "ages.csv").write_text("file,age\na.png,7\n")
    data = Source(str(tmp_path)).split("train", option="train_split")
    assert (data.column_names, data["label"][:]) == (["image", "label"], [0, 1])
