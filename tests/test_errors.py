"""Whatever a library raises at a door becomes one line of ours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersim.errors import UserError, as_user_error, at_least, check_seed, check_share, meant, root_reason, user_path


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (KeyError("blocks"), "timm cannot build it: KeyError: 'blocks'. Change name."),
        (AssertionError(), "timm cannot build it: AssertionError. Change name."),
        (RuntimeError("sizes differ\n  at layer 3."), "timm cannot build it: sizes differ at layer 3. Change name."),
    ],
)
def test_any_exception_is_told_in_one_line_and_kept_as_the_cause(raised: Exception, told: str) -> None:
    with pytest.raises(UserError) as caught, as_user_error("timm cannot build it", "Change name."):
        raise raised

    assert str(caught.value) == told
    assert caught.value.__cause__ is raised


def test_a_user_error_passes_as_it_is() -> None:
    own = UserError("Set --data.path.")

    with pytest.raises(UserError) as caught, as_user_error("datasets cannot open it"):
        raise own

    assert caught.value is own


def test_an_interruption_is_no_error_of_the_users() -> None:
    with pytest.raises(KeyboardInterrupt), as_user_error("datasets cannot open it"):
        raise KeyboardInterrupt


def test_the_root_reason_is_the_first_causes() -> None:
    def wrapped() -> None:
        try:
            bytes([255]).decode()
        except UnicodeDecodeError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    with pytest.raises(UserError, match=r"x\.txt: .*invalid start byte\. Change") as caught:  # noqa: SIM117
        with as_user_error("x.txt", "Change it.", why=root_reason):
            wrapped()

    assert "generating" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("digits/alined", ["digits/aligned", "digits/standard"]),
        ("stand", ["cifar10/standard", "digits/standard"]),  # holds it
        ("algined", ["cifar10/aligned", "digits/aligned"]),  # its last part is near
        ("xyz", []),
    ],
)
def test_what_was_meant_is_found_by_the_whole_name_a_part_of_it_or_its_last_part(given: str, near: list[str]) -> None:
    known = ["cifar10/aligned", "cifar10/standard", "digits/aligned", "digits/standard"]

    assert meant(given, known) == (f" Did you mean {' or '.join(near)}?" if near else "")


@pytest.mark.parametrize("given", ["8", 2.5, True, None])
def test_what_is_no_whole_number_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(UserError, match=rf"^steps must be .*, got {given!r}: change --steps$"):
        at_least(1, "--steps", given)
    with pytest.raises(UserError, match=rf"^A seed is a whole number .*, but got {given!r}\. Change --seed\.$"):
        check_seed(given)
    assert at_least(1, "--steps", 8) == check_seed(8) == 8


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_a_share_is_a_number_of_any_kind(kind: Any) -> None:
    check_share("a share", kind(0.9))
    for wrong in (kind(1.5), kind("nan"), "0.5", None):
        with pytest.raises(UserError, match="Expected a share above 0 and below 1, but got"):
            check_share("a share", wrong)


def test_a_typed_path_may_begin_at_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/run") == tmp_path / "run"
    assert user_path(tmp_path) == tmp_path
    for wrong in ("~nobody-of-this-name/run", "x" * 300):
        with pytest.raises(UserError, match=f"^{wrong} cannot be opened: "):
            user_path(wrong)
