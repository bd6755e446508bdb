"""What data modules want of a tokenizer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from layersim.errors import UserError


@dataclass(frozen=True)
class Encoding:
    """Tokens of some texts, row by row and unpadded."""

    tokens: list[list[int]]
    types: list[list[int]] | None = None
    """Of each token, whether it belongs to a pair's first or second text; None where the model does not read this."""

    def replaced(self, places: Sequence[int], others: "Encoding") -> "Encoding":
        """With other rows at these places."""

        def put(rows: list[list[int]], new: list[list[int]]) -> list[list[int]]:
            at = dict(zip(places, new, strict=True))
            return [at.get(place, row) for place, row in enumerate(rows)]

        types = None if self.types is None or others.types is None else put(self.types, others.types)
        return Encoding(put(self.tokens, others.tokens), types)


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def name(self) -> str:
        """Where it comes from, for messages."""

    @property
    def vocabulary_size(self) -> int:
        """V: every token lies in 0 … V−1."""

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text."""

    @property
    def pad_id(self) -> int | None:
        """The token of padding."""

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        special: bool = True,
        max_length: int | None = None,
    ) -> Encoding:
        """The tokens of texts, or of pairs of texts.

        Args:
            texts: N of them.
            pairs: as many second texts, or None.
            special: add the tokens that a classifier expects ([CLS], [SEP], …).
            max_length: cut to this many tokens, the special ones included; None: uncut.
        """

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of these tokens, without special ones."""


def check_vocabulary(token: int, split: str, backbone: Any) -> None:
    """Raises a UserError if the backbone has no embedding for a split's largest token, or its padding."""
    size = getattr(backbone, "vocabulary_size", None)
    if size is not None and token >= size:
        raise UserError(
            f"the backbone's vocabulary has tokens 0..{size - 1}, but the {split} data has {token}: "
            f"set --data.tokenizer to the model's own"
        )
