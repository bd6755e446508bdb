"""What the command may do to a process of its own, and to nobody else's."""

import gc
import subprocess
import sys

import pytest

from layersim.__main__ import main

SCRIPT = """
import gc, sys
from layersim.__main__ import main
sys.argv = ["layersim", "recipes"]
assert main() == 0
print(gc.isenabled(), gc.get_freeze_count() > 10_000)
"""


def test_garbage_is_looked_for_again_when_all_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True True"


@pytest.mark.parametrize("collects", [True, False])
def test_a_process_that_calls_the_command_keeps_its_own_ways(collects: bool) -> None:
    before = gc.get_freeze_count()
    try:
        if not collects:
            gc.disable()
        assert main(["recipes"]) == 0
        assert gc.isenabled() == collects
        assert gc.get_freeze_count() <= before
    finally:
        gc.enable()
