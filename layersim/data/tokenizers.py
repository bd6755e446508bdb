"""Text to tokens: what data modules want of a tokenizer, bytes, and transformers' own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from transformers import AutoTokenizer

from layersim.errors import UserError, as_user_error
from layersim.installed_packages import model_name

Encoding: TypeAlias = dict[str, list[list[int]]]
"""Of some texts, row by row and unpadded: "input_ids", their tokens, and where the model reads them "token_type_ids",
whether each belongs to a pair's first or second text."""


class Tokenizer(ABC):
    """Text to tokens."""

    name: str
    """Where it comes from, for messages."""
    vocabulary_size: int
    """V: every token lies in 0 … V−1."""
    eos_id: int | None
    """The token that ends a text."""
    pad_id: int | None
    """The token of padding."""
    options: Mapping[str, Any] | None = None
    """By which it was fetched."""

    @abstractmethod
    def encode(self, *columns: Sequence[str], special: bool = True, max_length: int | None = None) -> Encoding:
        """The tokens of texts, or of pairs of texts.

        Args:
            columns: N texts, and of pairs as many second texts.
            special: add the tokens that a classifier expects ([CLS], [SEP], …).
            max_length: cut to this many tokens, the special ones included; None: uncut.
        """


class ByteTokenizer(Tokenizer):
    """Tokens 0 … 255 are the bytes of UTF-8; 256 ends a text, 257 is padding.

    For classification every text ends with token 256, and so does the second text of a pair.
    """

    name = "bytes"
    vocabulary_size = 258
    eos_id = 256
    pad_id = 257

    def encode(self, *columns: Sequence[str], special: bool = True, max_length: int | None = None) -> Encoding:
        """Of a pair that is too long, the longer text gives way first, until both are equally long."""
        end = [self.eos_id] if special else []
        rows = []
        for texts in zip(*columns, strict=True):
            parts = [text.encode() for text in texts]
            if max_length is not None:
                parts = _cut(parts, max_length - len(parts) * len(end))
            rows.append([token for part in parts for token in [*part, *end]])
        return {"input_ids": rows}


def _cut(parts: list[bytes], room: int) -> list[bytes]:
    if len(parts) == 1:
        return [parts[0][:room]]
    first, second = parts
    of_second = min(len(second), max(room // 2, room - len(first)))
    return [first[: room - of_second], second[:of_second]]


class PretrainedTokenizer(Tokenizer):
    """A tokenizer of transformers: of a name on the hub, a local folder, or `package:PACKAGE/FOLDER`; with options of
    `from_pretrained`, such as the revision; code that comes with it is run only where they say so."""

    def __init__(self, name: str, **options: Any) -> None:
        with as_user_error(
            f"no tokenizer could be opened from {name}",
            "Set --data.tokenizer to a local folder that holds one, which needs no network, or to bytes",
        ):
            asked = {"trust_remote_code": False} | options  # else it asks on the terminal
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model_name(name), **asked)
            tokens = {*self.tokenizer.get_vocab().values()}
            self.vocabulary_size = 1 + max(tokens)
        if len(tokens.difference(self.tokenizer.all_special_ids)) < 2:  # transformers makes one up of the family's name
            raise UserError(
                f"{name} brings no tokenizer, without which all texts are alike: set --data.tokenizer to one, such as "
                "that of the model it was trained from"
            )
        self.name, self.options = name, options
        self.eos_id = self.tokenizer.eos_token_id
        self.pad_id = self.tokenizer.pad_token_id

    def encode(self, *columns: Sequence[str], special: bool = True, max_length: int | None = None) -> Encoding:
        with as_user_error(f"the tokenizer {self.name} cannot read the texts", "Change --data.tokenizer"):
            encoded = self.tokenizer(
                *map(list, columns),
                add_special_tokens=special,
                truncation=max_length is not None,
                max_length=max_length,
                return_attention_mask=False,
                verbose=False,  # it warns of long texts, which are ours to count
            )
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}


def open_tokenizer(name: str, **options: Any) -> Tokenizer:
    """The byte-level tokenizer for "bytes", else transformers' own of that name or in that folder."""
    return ByteTokenizer() if name == "bytes" else PretrainedTokenizer(name, **options)


def tokenizer_of(name: str | None, backbone: Any, known: Tokenizer | None = None) -> Tokenizer:
    """The tokenizer that was asked for, else the backbone's own, fetched as the model was (revision, trust); `known`
    where that is the one."""
    if known is not None and type(known) not in (ByteTokenizer, PretrainedTokenizer):
        return known  # somebody's own, by which their data are read
    options: Mapping[str, Any] = {} if name is not None else getattr(backbone, "hub_options", {})
    name = name if name is not None else getattr(backbone, "tokenizer_name", None)
    if name is None:
        raise UserError(
            f"{type(backbone).__name__} names no tokenizer of its own: set --data.tokenizer to a name on the hub, a "
            f"local folder, or bytes"
        )
    same = known is not None and (known.name, known.options or {}) == (name, options)
    return known if known is not None and same else open_tokenizer(name, **options)


def check_vocabulary(token: int, split: str, backbone: Any) -> None:
    """Raises a UserError if the backbone has no embedding for a split's largest token, or its padding."""
    size = getattr(backbone, "vocabulary_size", None)
    if size is not None and token >= size:
        raise UserError(
            f"the backbone's vocabulary has tokens 0..{size - 1}, but the {split} data has {token}: "
            f"set --data.tokenizer to the model's own"
        )
