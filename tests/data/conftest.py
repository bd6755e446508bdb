"""What tests of data share: a cache of their own, and a tokenizer."""

import logging
from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.data.texts import VOCABULARY, saved


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    # else it tells the hub of every file that is opened, and waits where there is no network
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)


@pytest.fixture
def infos(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Whatever is told the user as information, in `messages`."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "propagate", True)
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    return caplog


@pytest.fixture
def bert(tmp_path: Path) -> str:
    """A folder with a tokenizer of whole words that marks sentences as BERT's does."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return saved(tokenizer, tmp_path / "bert", pad_token="[PAD]", model_input_names=["input_ids", "token_type_ids"])
