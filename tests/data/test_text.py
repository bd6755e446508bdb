"""Texts with labels: every kind of file, what a batch holds, and what is refused."""

import json
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
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from layersim.data import ByteTokenizer, Text, open_tokenizer
from layersim.data.pretrained_tokenizer import tokenizer_of
from layersim.data.sentences import SentenceSplit
from layersim.data.sources import open_split
from layersim.data.splits import shared_samples
from layersim.errors import UserError

WORDS = ["a", "good", "bad", "film", "null", "NA", '"']
VOCABULARY = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
SENTENCES = ["a good film", "bad", "a bad bad film", "good", 'a " film', "NA", "null", "good good good good good"]
LABELS = [1, 0, 0, 1, 0, 1, 0, 1]
LENGTHS = [5, 3, 6, 3, 5, 3, 3, 7]  # with [CLS] and [SEP]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    # else it tells the hub of every file that is opened, and waits where there is no network
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)


@pytest.fixture
def bert(tmp_path: Path) -> str:
    """A folder with a tokenizer of whole words that marks sentences as BERT's does."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return saved(tokenizer, tmp_path / "bert", pad_token="[PAD]", model_input_names=["input_ids", "token_type_ids"])


def saved(tokenizer: Tokenizer, folder: Path, **special: Any) -> str:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return str(folder)


def bare(folder: Path, **special: Any) -> str:
    """A tokenizer of whole words that adds nothing."""
    tokenizer = Tokenizer(models.WordLevel({**VOCABULARY, "</s>": len(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return saved(tokenizer, folder, **special)


def rows(sentences: list[Any] = SENTENCES, labels: list[Any] = LABELS, **more: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"sentence": sentences, "label": labels, **more})


def csv(folder: Path) -> str:
    rows().to_csv(folder / "train.csv", index=False)
    return str(folder / "train.csv")


def tsv(folder: Path) -> str:
    lines = [f"{sentence}\t{label}" for sentence, label in zip(SENTENCES, LABELS, strict=True)]
    (folder / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return str(folder / "train.tsv")


def json_lines(folder: Path) -> str:
    lines = [
        json.dumps({"sentence": sentence, "label": label}) for sentence, label in zip(SENTENCES, LABELS, strict=True)
    ]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return str(folder / "train.jsonl")


def parquet(folder: Path, data: datasets.Dataset | None = None, name: str = "train") -> str:
    folder.mkdir(exist_ok=True)
    (data or rows()).to_parquet(folder / f"{name}.parquet")
    return str(folder / f"{name}.parquet")


def folder_of_tsv(folder: Path) -> str:
    (folder / "glue").mkdir()
    tsv(folder / "glue")
    return str(folder / "glue")


def all_of(data: Text, split: str) -> dict[str, Any]:
    """A whole split as one batch."""
    chosen = data.splits[split]
    return data.collate([chosen[position] for position in range(len(chosen))])


def whole(path: str, tokenizer: str | None, **options: Any) -> Text:
    """All rows for training, and again for validation."""
    data = Text(path, tokenizer=tokenizer, text_column="sentence", val_split="train", **options)
    data.setup()
    return data


@pytest.mark.parametrize("source", [csv, tsv, json_lines, parquet, folder_of_tsv])
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
    assert [batch["input_ids"].shape[1] for batch in data.val_dataloader()] == [5, 6, 5, 7]
    data = whole(parquet(tmp_path), bert, eval_batch_size=2, pad_to_multiple=8)
    assert [batch["input_ids"].shape[1] for batch in data.val_dataloader()] == [8, 8, 8, 8]
    long = parquet(tmp_path / "long", rows(["good " * 20, "bad"], [0, 1]))
    data = whole(long, bert, max_length=9, pad_to_multiple=8)
    assert all_of(data, "val")["input_ids"].shape == (2, 9)  # 16 would be more than the model reads


def test_long_texts_are_cut_and_counted(
    tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "propagate", True)
    path = parquet(tmp_path, rows(["good " * 6, "good " * 7, "a film", "bad " * 40], [0, 1, 0, 1]))
    with caplog.at_level(logging.INFO):
        data = whole(path, bert, max_length=8)
    assert [r.message for r in caplog.records if "cut" in r.message] == [
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


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(9, 9, (4, 4)), (2, 9, (2, 6)), (9, 3, (5, 3)), (3, 4, (3, 4))]
)
def test_of_a_pair_the_longer_text_gives_way(first: int, second: int, expected: tuple[int, int]) -> None:
    (tokens,) = ByteTokenizer().encode(["a" * first], ["b" * second], max_length=10).tokens
    assert (tokens.count(97), tokens.count(98), tokens.count(256)) == (*expected, 2)


def test_the_models_own_tokenizer_is_fetched_as_the_model_was(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    fetch = AutoTokenizer.from_pretrained

    def noting(name: str, **options: Any) -> Any:
        given.append(options)
        return fetch(name)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", noting)
    options = {"revision": "v2", "trust_remote_code": True}
    model = SimpleNamespace(tokenizer_name=bert, hub_options=options)
    assert tokenizer_of(None, model).vocabulary_size == 11
    assert tokenizer_of(bert, model).vocabulary_size == 11
    assert given == [options, {}], "one that was named by itself is fetched by itself"


def test_the_model_may_read_less_than_max_length(tmp_path: Path, bert: str) -> None:
    path = parquet(tmp_path, rows(["good " * 20, "bad"] * 2, [0, 1] * 2))
    model = SimpleNamespace(num_classes=2, input_size=None, max_positions=9, tokenizer_name=bert, vocabulary_size=11)
    for tokenizer in (None, bert):  # the backbone's own, and one that has cut to 256 already
        data = whole(path, tokenizer, length_bucketing=True)
        data.check(model)
        batch = all_of(data, "val")
        assert batch["input_ids"].shape == (4, 9)
        assert batch["attention_mask"].sum(dim=1).tolist() == [9, 9, 3, 3]
        assert batch["index"].tolist() == [0, 2, 1, 3]
    data = whole(path, None, truncation="refuse")
    with pytest.raises(UserError, match=r"row 0 of split train has 22 tokens, but 9 is the most"):
        data.check(model)


def test_a_vocabulary_that_is_not_the_models(tmp_path: Path, bert: str) -> None:
    model = SimpleNamespace(num_classes=2, input_size=None, vocabulary_size=10)
    message = r"vocabulary has tokens 0\.\.9, but the train data has 10: set --data\.tokenizer to the model's own"
    with pytest.raises(UserError, match=message):
        whole(parquet(tmp_path), bert, predict_split=None).check(model)
    model.vocabulary_size = 11
    whole(parquet(tmp_path), bert).check(model)


def test_padding_that_is_not_in_the_models_vocabulary(tmp_path: Path) -> None:
    tokenizer = bare(tmp_path / "added", pad_token="<pad>")  # adds it behind the others: as a model of old has it not
    message = r"vocabulary has tokens 0\.\.11, but the (train|val) data has 12: set --data\.tokenizer"
    with pytest.raises(UserError, match=message):
        whole(csv(tmp_path), tokenizer).check(SimpleNamespace(num_classes=2, vocabulary_size=12))
    whole(csv(tmp_path), tokenizer).check(SimpleNamespace(num_classes=2, vocabulary_size=13))


def test_slices_of_texts_know_what_they_share(tmp_path: Path, bert: str) -> None:
    splits = {"train_split": "train[:6]", "val_split": "train[4:]", "test_split": "train[6:]"}
    data = Text(csv(tmp_path), text_column="sentence", tokenizer=bert, **splits)
    data.setup()
    assert shared_samples(data.splits["train"], data.splits["val"]) == 2
    assert shared_samples(data.splits["train"], data.splits["test"]) == 0


def test_no_tokenizer_is_known(tmp_path: Path) -> None:
    data = whole(parquet(tmp_path), None)
    with pytest.raises(UserError, match=r"no tokenizer is known yet: set --data\.tokenizer, or call check\(backbone\)"):
        data.splits["train"][0]
    with pytest.raises(UserError, match=r"SimpleNamespace names no tokenizer of its own: set --data\.tokenizer to"):
        data.check(SimpleNamespace(num_classes=2, input_size=None))


@pytest.mark.parametrize("name", ["./nothing/here", "nobody/such-tokenizer"])
def test_a_tokenizer_out_of_reach(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=rf"(?s)no tokenizer could be opened from {name}: .* to a local folder that holds"
    ):
        open_tokenizer(name)


def test_bytes_there_and_back() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(["né", ""]).tokens == [[0x6E, 0xC3, 0xA9, 256], [256]]
    assert tokenizer.encode(["né", ""], special=False).tokens == [[0x6E, 0xC3, 0xA9], []]
    for text in ("naïve\n\t漢字 🙂", "", "plain"):
        (tokens,) = tokenizer.encode([text]).tokens
        assert max(tokens) < tokenizer.vocabulary_size
        assert tokenizer.decode([*tokens, tokenizer.pad_id]) == text
    assert tokenizer.decode([0xC3]) == "\N{REPLACEMENT CHARACTER}"


def test_end_of_text_pads_where_nothing_else_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real end of text inside a sentence stays attended to."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "propagate", True)
    path = parquet(tmp_path, rows(["good </s>", "a bad bad film"], [1, 0]))
    with caplog.at_level(logging.INFO):
        batch = all_of(whole(path, bare(tmp_path / "gpt", eos_token="</s>")), "train")
    assert [r.message for r in caplog.records if "padding" in r.message] == [
        f"The tokenizer {tmp_path}/gpt has no padding token: its end of text pads, told apart by attention_mask."
    ]
    assert batch["input_ids"].tolist() == [[5, 11, 11, 11], [4, 6, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    with pytest.raises(UserError, match=r"has neither a padding token nor one that ends a text"):
        whole(path, bare(tmp_path / "none"))


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
    (batch,) = data.predict_dataloader()
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


def test_evaluation_sorted_by_length_reads_the_same_samples(tmp_path: Path, bert: str) -> None:
    def seen(**options: Any) -> dict[int, tuple[list[int], int]]:
        data = whole(parquet(tmp_path), bert, eval_batch_size=3, **options)
        found = {}
        for batch in data.val_dataloader():
            for place, index in enumerate(batch["index"].tolist()):
                mask = batch["attention_mask"][place].bool()
                found[index] = (batch["input_ids"][place][mask].tolist(), int(batch["label"][place]))
        return found

    plain, grouped = seen(), seen(length_bucketing=True)
    assert grouped == plain
    assert list(plain) == list(range(8))
    assert [LENGTHS[index] for index in grouped] == sorted(LENGTHS, reverse=True)


def test_bucketing_pads_less() -> None:
    generator = np.random.default_rng(0)
    split = SentenceSplit("x", np.arange(400), None, pa.array(["a" * n for n in generator.integers(1, 90, 400)]))
    split.encode(ByteTokenizer(), 256, "cut")
    data = Text("nowhere", tokenizer="bytes", batch_size=8)
    data._encode({"train": split}, ByteTokenizer())
    data.splits = {"train": split}

    def padding() -> float:
        batches = list(data.train_dataloader())
        assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(400))
        return 1 - sum(b["attention_mask"].sum().item() for b in batches) / sum(b["input_ids"].numel() for b in batches)

    mixed = padding()
    split.bucket(training=True)
    assert padding() < 0.03
    assert mixed > 0.3  # the control


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, r"expected 0 < val_fraction < 1, got 1\.0: change --data\.val_fraction"),
        ({"max_length": 7}, r"max_length must be at least 8, got 7"),
        ({"pad_to_multiple": 0}, r"pad_to_multiple must be at least 1, got 0"),
        ({"max_train_samples": 0}, r"max_train_samples must be at least 1, got 0"),
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
    data = open_split(str(tmp_path), "train", name=None, option="train_split")
    assert (data.column_names, data["label"][:]) == (["image", "label"], [0, 1])
