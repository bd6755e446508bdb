"""Texts as people have them, made into the batches that evaluation reads."""

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from layersim.data.inputs import Batch, Inputs, listed, named
from layersim.data.sentence_split import SentenceSplit
from layersim.data.sequences import PadCollate
from layersim.data.tokenizers import ByteTokenizer, PretrainedTokenizer, Tokenizer
from layersim.errors import UserError, as_user_error

_PROBES = ("A plain sentence, with commas.", "Ünïcödé & numbers: 3.14, 10 000\n\ttabs", "<tag> [CLS] </s> 'quoted'")
"""Texts in which tokenizers differ."""


class TextInputs(Inputs):
    """Texts, or pairs of texts, become tokens.

    Args:
        tokenizer: of the data.
        limit: tokens at most.
        truncation: what becomes of longer ones.
        collate: makes the batch.
        pairs: whether a sample is a pair of texts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        limit: int,
        truncation: Literal["cut", "refuse"],
        collate: PadCollate,
        *,
        pairs: bool = False,
    ) -> None:
        self.tokenizer, self.limit, self.truncation, self.collate = tokenizer, limit, truncation, collate
        self.pairs = pairs
        told = [tokenizer.vocabulary_size, limit, tokenizer.encode(_PROBES).tokens]
        self.fingerprint = sha256(json.dumps(told).encode()).hexdigest()[:16]

    def __call__(self, given: Any) -> Batch:
        one = isinstance(given, tuple) and len(given) == 2 if self.pairs else isinstance(given, str)
        rows = [given] if one else listed(given, "texts")
        kind = "pairs of texts, each a tuple of two" if self.pairs else "texts"
        for place, row in enumerate(rows):
            parts = row if self.pairs else (row,)
            whole = isinstance(parts, tuple | list) and len(parts) == 1 + self.pairs
            if not whole or not all(isinstance(part, str) for part in parts):
                raise UserError(f"Expected {kind}, but number {place} is {named(row)}.")
        columns = zip(*rows, strict=True) if self.pairs else [rows]
        texts = [pa.array(list(column), pa.string()) for column in columns]
        split = SentenceSplit("the texts given", np.arange(len(rows)), None, *texts, seed=0)
        split.encode(self.tokenizer, self.limit, self.truncation)
        return self.collate([split.inputs(place) for place in range(len(rows))])

    def save(self, folder: Path) -> None:
        if isinstance(self.tokenizer, PretrainedTokenizer):
            with as_user_error(f"The tokenizer {self.tokenizer.name} cannot be written"):
                self.tokenizer.tokenizer.save_pretrained(folder)

    def usage(self, names: Iterable[str]) -> str:
        example = 'texts = ["A first text.", "And another."]\n'
        arrays = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        made = {name: f"np.array([row.{arrays[name]} for row in rows], np.int64)" for name in names}
        if isinstance(self.tokenizer, ByteTokenizer):
            made = {
                "input_ids": f"np.array([row + [{self.tokenizer.pad_id}] * (longest - len(row)) for row in rows])",
                "attention_mask": "np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])",
            }
            read = (
                f"rows = [[*text.encode()[: {self.limit - 1}], {self.tokenizer.eos_id}] for text in texts]\n"
                "longest = max(map(len, rows))\n"
            )
            head = "import numpy as np\n"
        else:
            pad = self.collate.padding["input_ids"]
            head = "import numpy as np\nfrom tokenizers import Tokenizer\n"
            read = (
                'tokenizer = Tokenizer.from_file("tokenizer.json")\n'
                f"tokenizer.enable_truncation({self.limit})\n"
                f"tokenizer.enable_padding(pad_id={pad})\n"
                "rows = tokenizer.encode_batch(texts)\n"
            )
        made |= {name: "np.zeros_like(input_ids)" for name in names if name not in made}
        if self.pairs:
            example = 'texts = [("A first text.", "And the second of this pair.")]\n'
        return head + example + read + "".join(f"{name} = {value}\n" for name, value in made.items())
