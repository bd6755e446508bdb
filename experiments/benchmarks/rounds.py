"""Interleaved rounds: each times every contestant once, so that a machine that is busy for a while slows them alike."""

import os
import platform
import time
from collections.abc import Callable
from statistics import median

import torch


def interleave(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one warm-up of each."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of the two times of one round."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def machine() -> str:
    """One line on where the figures come from."""
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
