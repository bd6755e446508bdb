from pathlib import Path

from tests.reliability import kills


def test_a_killed_training_ends_with_the_numbers_of_one_that_was_not(tmp_path: Path) -> None:
    """Three trainings, the last one on two processes."""
    tally = kills.run(3, 0, tmp_path)
    assert tally.lost == []
    assert tally.injected == 3
