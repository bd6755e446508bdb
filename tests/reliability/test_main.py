"""`python -m tests.reliability`, as `make test-long` calls it."""

from pathlib import Path

import pytest

from tests.reliability import __main__ as program
from tests.reliability import corruptions, kills
from tests.reliability.tally import Tally


@pytest.mark.parametrize("named", [[], ["kills"], ["corruptions", "kills"]])
def test_what_is_not_named_is_all(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran = []
    for library in ("lightning.pytorch", "lightning.fabric"):
        caplog.set_level("INFO", logger=library)  # puts back, too, what the program sets
    for kind in program.KINDS:
        module = program.import_module(f"tests.reliability.{kind}")
        monkeypatch.setattr(module, "run", lambda count, seed, folder, kind=kind: ran.append((kind, count)) or Tally())
    monkeypatch.setattr("sys.argv", ["reliability", *named, "--page", str(tmp_path / "page.md")])
    assert program.main() == 0
    assert [kind for kind, _ in ran] == (named or program.KINDS)
    assert dict(ran)["kills"] == kills.COUNT == 500
    assert corruptions.COUNT == 2000
    assert (tmp_path / "page.md").read_text().count("\n## ") == len(ran)
