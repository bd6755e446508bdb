"""A few kinds of dirty data; `python -m tests.reliability dirty_data` has all."""

from pathlib import Path

from tests.reliability.dirty_data import COUNT, kinds, run


def test_dirt_is_named_or_left_out_and_counted(tmp_path: Path) -> None:
    assert len(kinds()) >= COUNT
    tally = run(25, 0, tmp_path)
    assert tally.lost == []
    assert tally.injected == 50, "each with `error` and with `skip`"
    assert tally.outcomes["left out and counted"] >= 10
    assert tally.outcomes["refused in one line"] >= 10
