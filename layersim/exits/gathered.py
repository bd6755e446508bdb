"""Requests of many threads, answered together: one batch for what comes within a few milliseconds."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, Queue
from threading import TIMEOUT_MAX, Thread
from time import monotonic
from typing import Any

from layersim.errors import UserError
from layersim.exits.runner import Exited


class Gathered:
    """Gives single texts or images, asked for by many threads, to a model in batches: `Gathered(EarlyExit.load(RUN))`.

    A batch is what waits when the model is free, and what comes within `wait` from then on. What cannot be read is
    refused to whoever sent it, and to nobody else: its batch is answered one by one then.

    Args:
        model: answers a list of inputs, such as an `EarlyExit` that was loaded.
        most: inputs in a batch, at most.
        wait: seconds that the first of a batch waits for others.

    Raises:
        UserError: `most` below 1, or `wait` below 0 or longer than threads wait.
    """

    def __init__(self, model: Callable[[list[Any]], Exited], *, most: int = 64, wait: float = 0.002) -> None:
        if not most >= 1 or not 0 <= wait <= TIMEOUT_MAX:
            raise UserError(f"Expected 1 input in a batch and 0 seconds, or more, but got most={most} and wait={wait}.")
        self.model, self.most, self.wait = model, most, wait
        self._waiting: Queue[tuple[Any, Future[Exited]]] = Queue()
        Thread(target=self._work, name="layersim-gathered", daemon=True).start()

    def __call__(self, given: Any) -> Exited:
        """The answer to one input; waits for it.

        Raises:
            UserError: as the model does of this input.
        """
        answer: Future[Exited] = Future()
        self._waiting.put((given, answer))
        return answer.result()

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            until = monotonic() + self.wait
            while len(batch) < self.most:
                try:
                    batch.append(self._waiting.get(timeout=max(0.0, until - monotonic())))
                except Empty:
                    break
            self._answer(batch)

    def _answer(self, batch: list[tuple[Any, Future[Exited]]]) -> None:
        try:
            told = self.model([given for given, _ in batch])
            if len(told.predictions) != len(batch):
                raise UserError(f"The model has answered {len(told.predictions)} of {len(batch)} inputs.")
            answers = [told.of(place) for place in range(len(batch))]
        except Exception as error:  # goes to whoever asked
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:
                self._answer([one])
        else:
            for (_, answer), own in zip(batch, answers, strict=True):
                answer.set_result(own)
