"""A few of the faults that `disk` injects by the hundred."""

from pathlib import Path

from tests.reliability import disk


def test_a_broken_disk_is_told_and_costs_nothing(tmp_path: Path) -> None:
    tally = disk.run(len(disk.KINDS), 0, tmp_path)
    assert tally.lost == []
    assert tally.injected == len(disk.KINDS)
