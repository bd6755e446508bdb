"""Many threads, few batches, each thread its own answer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from layersim.errors import UserError
from layersim.exits import Exited, Gathered


class Doubling:
    """Gives twice each number as logits; refuses negative ones; counts its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.free = threading.Event()

    def __call__(self, given: list[Any]) -> Exited:
        self.free.wait(10)
        self.batches.append(len(given))
        if any(number < 0 for number in given):
            raise UserError(f"{min(given)} is negative")
        numbers = torch.tensor(given)
        return Exited(numbers, numbers, 2.0 * numbers[:, None], [str(number) for number in given])


def test_each_gets_its_own_answer_and_few_batches_are_run() -> None:
    model = Doubling()
    ask = Gathered(model, most=8, wait=0.05)
    with ThreadPoolExecutor(40) as pool:
        told = [pool.submit(ask, number) for number in range(40)]
        model.free.set()
        answers = [each.result(20) for each in told]
    assert [answer.logits.tolist() for answer in answers] == [[[2.0 * number]] for number in range(40)]
    assert [answer.class_names for answer in answers] == [[str(number)] for number in range(40)]
    assert sum(model.batches) == 40
    assert max(model.batches) == 8
    assert len(model.batches) <= 10


def test_a_bad_input_is_refused_to_whoever_sent_it() -> None:
    model = Doubling()
    ask = Gathered(model, wait=0.05)
    with ThreadPoolExecutor(5) as pool:
        told = [pool.submit(ask, number) for number in (1, 2, -3, 4)]
        model.free.set()
        assert [told[place].result(20).predictions.tolist() for place in (0, 1, 3)] == [[1], [2], [4]]
        with pytest.raises(UserError, match="-3 is negative"):
            told[2].result(20)


@pytest.mark.parametrize("options", [{"most": 0}, {"wait": -1.0}, {"wait": float("nan")}])
def test_no_batch_of_none(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Expected 1 input in a batch and 0 seconds"):
        Gathered(Doubling(), **options)
