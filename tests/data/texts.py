"""Small texts in every kind of file, tokenizers of whole words, and data that read them."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from layersim.data import Text

WORDS = ["a", "good", "bad", "film", "null", "NA", '"']
VOCABULARY = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
SENTENCES = ["a good film", "bad", "a bad bad film", "good", 'a " film', "NA", "null", "good good good good good"]
LABELS = [1, 0, 0, 1, 0, 1, 0, 1]
LENGTHS = [5, 3, 6, 3, 5, 3, 3, 7]  # with [CLS] and [SEP]


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


def zipped_csv(folder: Path) -> str:
    return zipped(csv(folder))


def folder_of_zipped_tsv(folder: Path) -> str:
    zipped(f"{folder_of_tsv(folder)}/train.tsv")
    return str(folder / "glue")


def zipped(path: str) -> str:
    """The file compressed, in its place."""
    Path(f"{path}.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
    Path(path).unlink()
    return f"{path}.gz"


def all_of(data: Text, split: str) -> dict[str, Any]:
    """A whole split as one batch."""
    chosen = data.splits[split]
    return data.collate([chosen[position] for position in range(len(chosen))])


def whole(path: str, tokenizer: str | None, **options: Any) -> Text:
    """All rows for training, and again for validation."""
    data = Text(path, tokenizer=tokenizer, text_column="sentence", val_split="train", **options)
    data.setup()
    return data
