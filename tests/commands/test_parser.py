"""What the parser reads, whatever came before it."""

from typing import Union

from layersim.commands.parser import Parser


def test_a_whole_number_stays_one_in_any_order_of_types() -> None:
    parser = Parser()
    for name, kind in {"one": Union[float, int], "other": Union[int, float]}.items():  # noqa: UP007 - Python's cache
        parser.add_argument(f"--{name}", type=kind, default=0)
        for typed, meant in {"1": 1, "1.0": 1.0, "0.5": 0.5}.items():
            found = parser.parse_args([f"--{name}={typed}"])[name]
            assert (type(found), found) == (type(meant), meant)
