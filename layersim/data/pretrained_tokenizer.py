"""Tokenizers of transformers, and how any tokenizer is opened by its name."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import AutoTokenizer

from layersim.data.byte_tokenizer import ByteTokenizer
from layersim.data.tokenizer import Encoding, Tokenizer
from layersim.errors import UserError, as_user_error
from layersim.installed_packages import model_name


class PretrainedTokenizer:
    """A tokenizer of transformers.

    Args:
        name: a name on the hub, a local folder, or `package:PACKAGE/FOLDER`.
        options: of `from_pretrained`, such as the revision.

    Raises:
        UserError: there is none of that name, or the hub is out of reach.
    """

    def __init__(self, name: str, **options: Any) -> None:
        with as_user_error(
            f"no tokenizer could be opened from {name}",
            "Set --data.tokenizer to a local folder that holds one, which needs no network, or to bytes",
        ):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model_name(name), **options)
            self.vocabulary_size = 1 + max(self.tokenizer.get_vocab().values())
        self.name = name
        self.eos_id: int | None = self.tokenizer.eos_token_id
        self.pad_id: int | None = self.tokenizer.pad_token_id

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        special: bool = True,
        max_length: int | None = None,
    ) -> Encoding:
        with as_user_error(f"the tokenizer {self.name} cannot read the texts", "Change --data.tokenizer"):
            encoded = self.tokenizer(
                list(texts),
                None if pairs is None else list(pairs),
                add_special_tokens=special,
                truncation=max_length is not None,
                max_length=max_length,
                return_attention_mask=False,
                verbose=False,  # it warns of long texts, which are ours to count
            )
        return Encoding(encoded["input_ids"], encoded.get("token_type_ids"))

    def decode(self, tokens: Iterable[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


def open_tokenizer(name: str) -> Tokenizer:
    """The byte-level tokenizer for "bytes", else transformers' own of that name or in that folder."""
    return ByteTokenizer() if name == "bytes" else PretrainedTokenizer(name)


def tokenizer_of(name: str | None, backbone: Any) -> Tokenizer:
    """The tokenizer that was asked for, else the backbone's own, fetched as the model was: same revision, same trust.

    Raises:
        UserError: neither is known.
    """
    if name is not None:
        return open_tokenizer(name)
    own = getattr(backbone, "tokenizer_name", None)
    if own is None:
        raise UserError(
            f"{type(backbone).__name__} names no tokenizer of its own: set --data.tokenizer to a name on the hub, a "
            f"local folder, or bytes"
        )
    return PretrainedTokenizer(own, **getattr(backbone, "hub_options", {}))
