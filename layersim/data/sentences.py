"""Classification of tokenised texts, wherever the texts come from."""

from abc import abstractmethod
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

from layersim.data.base import Reader, SplitDataModule, at_least
from layersim.data.sentence_split import SentenceSplit
from layersim.data.sequences import PadCollate
from layersim.data.splits import Sample, Split
from layersim.data.text_inputs import TextInputs
from layersim.data.tokenizers import Tokenizer, check_vocabulary, open_tokenizer, tokenizer_of
from layersim.errors import UserError, check_choice

Truncation = Literal["cut", "refuse"]


class SentenceData(SplitDataModule):
    """Texts, or pairs of texts, with a class each.

    A batch holds, all int64: "input_ids", "attention_mask" and, where the tokenizer makes them, "token_type_ids", each
    (N, T) with T the batch's longest text and the padding on the right; "label" and "index" (N,). Texts are tokenised
    once, at the start, and kept in memory (4 bytes a token). A text that gives no token at all is an error; an empty
    text is accepted where the tokenizer adds tokens of its own ([CLS], [SEP], an end).

    Args:
        tokenizer: a name on the hub or a local folder, for `transformers.AutoTokenizer`; "bytes" for the byte-level
            one; None: the backbone's own.
        max_length: tokens of a text, or of a pair, at most; the model's positions, where it has fewer.
        truncation: what becomes of longer ones: "cut", and told how many, or "refuse".
        length_bucketing: group texts of similar length into batches, inside shuffled windows of 50.
        pad_to_multiple: round T up to a multiple of this, as tensor cores like 8, where the length limit lets it.
        **loader: the options of SplitDataModule.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(
        self,
        *,
        tokenizer: str | None = None,
        max_length: int = 256,
        truncation: Truncation = "cut",
        length_bucketing: bool = False,
        pad_to_multiple: int = 1,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.tokenizer_name = tokenizer
        self.tokenizer: Tokenizer | None = None
        self.limit = at_least(8, "max_length", max_length)
        check_choice("truncation", truncation, Truncation)
        self.truncation = truncation
        self.length_bucketing = length_bucketing
        self.pad_to_multiple = at_least(1, "pad_to_multiple", pad_to_multiple)

    @abstractmethod
    def open(self) -> dict[str, SentenceSplit]:
        """The splits, not tokenised yet; sets class_names where they are known."""

    def load(self) -> dict[str, Split]:
        splits = self.open()
        if self.tokenizer_name is not None:
            self._encode(splits, open_tokenizer(self.tokenizer_name))
        return dict(splits)

    def adapt(self, backbone: Any) -> None:
        limit = min(self.limit, getattr(backbone, "max_positions", None) or self.limit)
        if self.tokenizer is None or limit < self.limit:
            self.limit = limit
            splits = {role: split for role, split in self.splits.items() if isinstance(split, SentenceSplit)}
            self._encode(splits, self.tokenizer or tokenizer_of(self.tokenizer_name, backbone))

    def inputs(self, backbone: Any) -> TextInputs:
        self.adapt(backbone)
        assert self.tokenizer is not None
        assert isinstance(self.collate, PadCollate)
        pairs = getattr(self, "pair_column", None) is not None
        return TextInputs(self.tokenizer, self.limit, self.truncation, self.collate, pairs=pairs)

    def check_sample(self, sample: Sample, split: str, backbone: Reader) -> None:
        assert isinstance(self.collate, PadCollate)
        assert self.tokenizer is not None
        encoded = self.splits.get(split)  # of a stream nobody knows the largest token beforehand
        largest = encoded.tokens.largest if isinstance(encoded, SentenceSplit) else self.tokenizer.vocabulary_size - 1
        for token in (largest, self.collate.padding["input_ids"]):
            check_vocabulary(token, split, backbone)

    def _encode(self, splits: dict[str, SentenceSplit], tokenizer: Tokenizer) -> None:
        pad_id = _padding(tokenizer)
        cut = {role: split.encode(tokenizer, self.limit, self.truncation) for role, split in splits.items()}
        if any(cut.values()):
            told = ", ".join(f"{count} of {len(splits[role])} in {role}" for role, count in cut.items())
            rank_zero_info(f"Texts cut to {self.limit} tokens: {told} (--data.max_length).")
        if self.length_bucketing:
            for split in splits.values():
                split.lengths = split.tokens.lengths
        self.tokenizer = tokenizer
        padding = {"input_ids": pad_id, "token_type_ids": 0}
        self.collate = PadCollate(padding, multiple=self.pad_to_multiple, limit=self.limit)


def _padding(tokenizer: Tokenizer) -> int:
    if tokenizer.pad_id is not None:
        return tokenizer.pad_id
    if tokenizer.eos_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name} has neither a padding token nor one that ends a text: "
            f"change --data.tokenizer, or give it a padding token"
        )
    rank_zero_info(
        f"The tokenizer {tokenizer.name} has no padding token: its end of text pads, told apart by attention_mask."
    )
    return tokenizer.eos_id
