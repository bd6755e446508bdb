"""Tokenizers: the model's own, bytes, and what a model cannot read."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoTokenizer

from layersim.data import ByteTokenizer, LanguageModeling, Text, open_tokenizer
from layersim.data.tokenizers import tokenizer_of
from layersim.errors import UserError
from tests.data.texts import all_of, bare, csv, parquet, rows, whole


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(9, 9, (4, 4)), (2, 9, (2, 6)), (9, 3, (5, 3)), (3, 4, (3, 4))]
)
def test_of_a_pair_the_longer_text_gives_way(first: int, second: int, expected: tuple[int, int]) -> None:
    (tokens,) = ByteTokenizer().encode(["a" * first], ["b" * second], max_length=10)["input_ids"]
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
    assert given == [options, {"trust_remote_code": False}], "one that was named by itself is fetched by itself"


def test_the_model_may_read_less_than_max_length(tmp_path: Path, bert: str) -> None:
    path = parquet(tmp_path, rows(["good " * 20, "bad"] * 2, [0, 1] * 2))
    model = SimpleNamespace(num_classes=2, input_size=None, max_positions=9, tokenizer_name=bert, vocabulary_size=11)
    for tokenizer in (None, bert):  # the backbone's own, and one that has cut to 256 already
        data = whole(path, tokenizer, length_bucketing=True)
        data.check(model)
        batch = all_of(data, "val")
        assert batch["input_ids"].shape == (4, 9)
        assert batch["attention_mask"].sum(dim=1).tolist() == [9, 3, 9, 3]
    data = whole(path, None, truncation="refuse")
    with pytest.raises(UserError, match=r"row 0 of split train has 22 tokens, but 9 is the most"):
        data.check(model)


def test_data_are_read_anew_for_another_model(tmp_path: Path, bert: str) -> None:
    """By its own tokenizer, up to its own length; and not again for the one that they were read for."""
    path = parquet(tmp_path, rows(["good " * 20, "bad"] * 2, [0, 1] * 2))
    gpt = bare(tmp_path / "gpt", eos_token="</s>")

    def model(tokenizer: str | None, positions: int | None) -> SimpleNamespace:
        return SimpleNamespace(
            num_classes=2, input_size=None, max_positions=positions, tokenizer_name=tokenizer, vocabulary_size=12
        )

    data = Text(path, text_column="sentence", val_split="train")
    assert data.inputs(model(bert, 9))("bad")["input_ids"].tolist() == [[2, 6, 3]], "without any data opened"
    for tokenizer, positions, lengths in (
        (bert, 9, [9, 3]),
        (gpt, None, [20, 1]),
        (bert, None, [22, 3]),
        (gpt, 8, [8, 1]),
    ):
        data.check(model(tokenizer, positions))
        assert all_of(data, "val")["attention_mask"].sum(dim=1).tolist() == lengths * 2
        before = data.tokenizer
        data.check(model(tokenizer, positions))
        assert data.tokenizer is before
    with pytest.raises(UserError, match="names no tokenizer of its own"):
        data.check(model(None, None))
    blocks = LanguageModeling(path, text_column="sentence", val_fraction=0.5, block_size=8)
    lengths = []
    eos = bare(tmp_path / "lower", eos_token="[SEP]")
    for tokenizer in (gpt, eos, gpt):
        blocks.check(SimpleNamespace(tokenizer_name=tokenizer, vocabulary_size=12, num_classes=12))
        lengths.append([int(blocks.splits["val"][2]["input_ids"][-1])])
    assert lengths == [[11], [3], [11]], "the token that ends a text is each tokenizer's own"


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


def test_code_beside_a_tokenizer_is_not_run(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked whether it shall be, either."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    own = Path(bert) / "tokenizer_config.json"
    read = json.loads(own.read_text())
    own.write_text(json.dumps(read | {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}))
    (Path(bert) / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match=r"no tokenizer could be opened from .* contains custom code"):
        open_tokenizer(bert)
    with pytest.raises(SystemExit, match="ran"):  # the control
        tokenizer_of(None, SimpleNamespace(tokenizer_name=bert, hub_options={"trust_remote_code": True}))


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "t5", "xlnet", "deberta-v2", "albert"])
def test_a_folder_without_a_tokenizer_has_none(family: str, tmp_path: Path) -> None:
    """transformers makes one of special tokens up, to which all texts are alike."""
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    made = AutoTokenizer.from_pretrained(tmp_path)
    assert made("good").input_ids == made("film").input_ids
    with pytest.raises(UserError, match=f"{tmp_path} brings no tokenizer, without which all texts are alike"):
        open_tokenizer(str(tmp_path))


def test_bytes_are_tokens() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(["né", ""])["input_ids"] == [[0x6E, 0xC3, 0xA9, 256], [256]]
    assert tokenizer.encode(["né", ""], special=False)["input_ids"] == [[0x6E, 0xC3, 0xA9], []]
    for text in ("naïve\n\t漢字 🙂", "", "plain"):
        (tokens,) = tokenizer.encode([text])["input_ids"]
        assert bytes(tokens[:-1]).decode() == text
        assert tokens[-1] == tokenizer.eos_id < tokenizer.pad_id < tokenizer.vocabulary_size


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
