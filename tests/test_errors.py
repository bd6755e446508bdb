"""Whatever a library raises at a door becomes one line of ours."""

import pytest

from layersim.errors import UserError, as_user_error, meant, root_reason


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
