"""What the parser reads, whatever came before it."""

from typing import Union

import yaml

from layersim.commands.parser import Parser
from layersim.commands.sweep_check import Parsed
from tests import tiny


def test_a_whole_number_stays_one_in_any_order_of_types() -> None:
    parser = Parser()
    for name, kind in {"one": Union[float, int], "other": Union[int, float]}.items():  # noqa: UP007 - Python's cache
        parser.add_argument(f"--{name}", type=kind, default=0)
        for typed, meant in {"1": 1, "1.0": 1.0, "0.5": 0.5}.items():
            found = parser.parse_args([f"--{name}={typed}"])[name]
            assert (type(found), found) == (type(meant), meant)


def test_an_enumerations_default_is_written_as_its_text() -> None:
    """As that of Lightning's Timer, in the configuration that a run keeps."""
    timer = ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:10:00"]
    read = Parsed(["fit", *tiny.FLAGS, *timer])
    (written,) = yaml.safe_load(read.parser.dump(read.config))["fit"]["trainer"]["callbacks"][-1:]
    options = {"duration": "00:00:10:00", "interval": "step", "verbose": True}
    assert written == {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": options}
