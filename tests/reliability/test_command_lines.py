"""A few of the lines that `make test-long` types: none ends in a traceback, and the judge can tell."""

from pathlib import Path

import pytest

from tests.reliability import command_lines


def test_any_line_works_or_ends_with_one_line_of_ours(tmp_path: Path) -> None:
    tally = command_lines.run(80, 18, tmp_path)
    assert tally.lost == []
    assert tally.injected == 80
    assert min(tally.outcomes["done"], tally.outcomes["refused in one line"]) > 8


@pytest.mark.parametrize(
    ("code", "said", "leaves", "told"),
    [
        (1, "Traceback (most recent call last):\n  File x\nKeyError: 'a bug'\n", None, "traceback: KeyError: 'a bug'"),
        (139, "", None, "status 139"),
        (2, "layersim: error: one\nlayersim: error: two\n", None, "2 errors"),
        (2, "layersim: error: one\n\nand more\n", None, "no paragraph"),
        (2, "layersim: error: one\n", "runs/default/1/config.yaml", "leaves"),
        (0, "", "elsewhere/config.yaml", "changes"),
        (0, "", "runs/default/1/config.yaml", "--trainer.max_steps=3 stands as 4"),
        (2, "layersim: error: one\n", None, ""),
    ],
)
def test_what_is_lost_is_told(code: int, said: str, leaves: str | None, told: str, tmp_path: Path) -> None:
    if leaves is not None:
        (tmp_path / leaves).parent.mkdir(parents=True)
        (tmp_path / leaves).write_text("trainer: {max_steps: 4}")
    found = command_lines.wrong(["fit", "--trainer.max_steps=3"], code, said, tmp_path, {})
    assert found.startswith(told) if told else not found
