"""Many threads, few batches, each thread its own answer."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
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


@pytest.mark.parametrize(
    "options", [{"most": 0}, {"wait": -1.0}, {"wait": float("nan")}, {"wait": float("inf")}, {"wait": 1e10}]
)
def test_no_batch_of_none(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Expected 1 input in a batch and 0 seconds"):
        Gathered(Doubling(), **options)


@pytest.mark.parametrize(("answer", "message"), [("few", "answered 0 of 1 inputs"), ("tensor", "predictions")])
def test_an_answer_that_is_none_is_told_to_whoever_asked_and_the_next_is_served(answer: str, message: str) -> None:
    """A model that answers too few, or something else; threads of their own, as one that waits forever fails."""

    def model(given: list[Any]) -> Any:
        numbers = torch.tensor(given)
        told = Exited(numbers, numbers, numbers[:, None])
        if given[0] > 0:
            return told
        return told.logits if answer == "tensor" else Exited(numbers[:0], numbers[:0], numbers[:0, None])

    ask = Gathered(model, most=1)

    def asked(number: int) -> Future[Exited]:
        future: Future[Exited] = Future()

        def wait() -> None:
            try:
                future.set_result(ask(number))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=wait, daemon=True).start()
        return future

    for _ in range(2):
        with pytest.raises((UserError, AttributeError), match=message):
            asked(-1).result(10)
        assert asked(3).result(10).predictions.tolist() == [3]
