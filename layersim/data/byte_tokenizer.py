"""A tokenizer that needs no files: a token is a byte of UTF-8."""

from collections.abc import Iterable, Sequence

from layersim.data.tokenizer import Encoding


class ByteTokenizer:
    """Tokens 0 … 255 are the bytes of UTF-8; 256 ends a text, 257 is padding.

    For classification every text ends with token 256, and so does the second text of a pair.
    """

    name = "bytes"
    vocabulary_size = 258
    eos_id = 256
    pad_id = 257

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        special: bool = True,
        max_length: int | None = None,
    ) -> Encoding:
        """Of a pair that is too long, the longer text gives way first, until both are equally long."""
        end = [self.eos_id] if special else []
        rows = []
        for position, text in enumerate(texts):
            parts = [text.encode()] if pairs is None else [text.encode(), pairs[position].encode()]
            if max_length is not None:
                parts = _cut(parts, max_length - len(parts) * len(end))
            rows.append([token for part in parts for token in [*part, *end]])
        return Encoding(rows)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of the bytes; tokens that are none are left out, bytes that are no UTF-8 become U+FFFD."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


def _cut(parts: list[bytes], room: int) -> list[bytes]:
    if len(parts) == 1:
        return [parts[0][:room]]
    first, second = parts
    of_second = min(len(second), max(room // 2, room - len(first)))
    return [first[: room - of_second], second[:of_second]]
