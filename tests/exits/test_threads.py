"""What serves one model from several threads, or from a copy: the hooks on its blocks are everybody's."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from layersim.exits import Confidence, EarlyExit, TokenExit
from layersim.heads import SharedHead
from tests.exits.test_generation import T, prompts, sharp
from tests.exits.test_runner import afterwards, backbone_of, batch_of, spreading


def at_once(served: list[Callable[[], Any]], times: int = 8) -> None:
    """Each called from a thread of its own, and each time as it is alone."""
    alone = [call() for call in served]
    with ThreadPoolExecutor(len(served)) as pool:
        found = [pool.submit(lambda call=call: [call() for _ in range(times)]) for call in served]
    for expected, each in zip(alone, found, strict=True):
        for answer in each.result():
            assert torch.equal(answer.exit_layers, expected.exit_layers)


def test_two_exits_of_one_model_wait_for_each_other() -> None:
    backbone = backbone_of("BERT")
    head, batch = SharedHead(backbone), batch_of(backbone)
    threshold = spreading(afterwards(backbone, head, Confidence(), batch)[0])
    both = [EarlyExit(backbone, head, Confidence(), each) for each in (threshold, None)]
    at_once([lambda served=served: served(batch) for served in both])


def test_texts_are_written_one_call_after_the_other() -> None:
    backbone, (ids, mask) = sharp("GPT-2"), prompts()
    exits = TokenExit(backbone, SharedHead(backbone), Confidence(), 0.5)
    at_once([lambda: exits.generate(ids, mask, T)] * 3, times=3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda served: pickle.loads(pickle.dumps(served))])
def test_a_copy_serves_as_the_first_does(copied: Callable[[EarlyExit], EarlyExit]) -> None:
    backbone = backbone_of("BERT")
    batch, served = batch_of(backbone), EarlyExit(backbone, SharedHead(backbone), Confidence(), 0.2)
    other = copied(served)
    assert other.backbone is not backbone
    assert torch.equal(other(batch).logits, served(batch).logits)
