from pathlib import Path

from tests.reliability import processes


def test_all_processes_end_where_one_does(tmp_path: Path) -> None:
    """One is killed, one stopped, one meets a bug and one a user's error."""
    tally = processes.run(4, 60, tmp_path)
    assert tally.lost == []
    assert tally.injected == sum(tally.outcomes.values()) == len(tally.outcomes) == 4
