from pathlib import Path

from tests.reliability import corruptions


def test_damage_is_never_taken_for_weights(tmp_path: Path) -> None:
    tally = corruptions.run(60, 1, tmp_path)
    assert tally.lost == []
    assert tally.injected == 60
