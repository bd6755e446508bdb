"""What `layersim VERB --help` tells: the verb's own options first, and nothing that cannot be asked for."""

import contextlib
import os
import re
import subprocess
import sys
from importlib import import_module
from inspect import signature
from typing import Literal, get_args, get_origin

import pytest

from layersim.__main__ import VERBS, main
from layersim.commands.training import LayerwiseCLI
from tests.processes import PATIENCE

LOOPS = ("fit", "validate", "test", "predict", "exits", "export")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with contextlib.suppress(SystemExit):
        assert main(words) == 0
    return capsys.readouterr().out


def options(text: str) -> set[str]:
    """What a page of argparse's lists: `--name` at the beginning of a line, and those that stand beside it."""
    lines = re.findall(r"^  (-.*?)(?:  |$)", text, re.MULTILINE)
    return {word for line in lines for word in re.findall(r"--[\w.+]+", line)}


@pytest.fixture(scope="module")
def taken() -> dict[str, set[str]]:
    """The options of each verb that its parser takes."""

    class Asked(Exception): ...

    found: dict[str, set[str]] = {}

    class Asking(LayerwiseCLI):
        def parse_arguments(self, parser: object, args: object) -> None:
            actions = self._parser(self._verb)._actions
            found[self._verb] = {flag for action in actions for flag in action.option_strings if flag[:2] == "--"}
            raise Asked

    for verb in LOOPS:
        with pytest.raises(Asked):
            Asking([verb])
    return found


@pytest.mark.parametrize("verb", LOOPS)
def test_the_first_page_has_all_of_the_verbs_own_options_and_fits_a_terminal(
    verb: str, taken: dict[str, set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    page = told(capsys, verb, "--help")
    own = {flag for flag in taken[verb] if "." not in flag and flag not in ("--trainer", "--model", "--data")}
    assert options(page.partition("more options:")[0]) == {flag for flag in own if flag[-1] != "+"}
    assert page.index("--config") < page.index("--trainer.")
    assert max(map(len, page.splitlines())) <= 80
    for reach in ("--trainer.help", "--model.help", "--data.help", "--help=all", "--trainer.callbacks.help"):
        assert reach in page
    assert told(capsys, verb, "-h") == page
    assert VERBS[verb][1:].split(",")[0] in page or verb in ("exits", "export")


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {*LOOPS}))
def test_the_page_of_a_verb_has_all_that_its_function_takes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = told(capsys, verb, "--help")
    taken = signature(getattr(import_module(f"layersim.commands.{verb}"), verb)).parameters.values()
    assert options(page) == {"--help", *(f"--{one.name}" for one in taken if one.kind is one.KEYWORD_ONLY)}
    for one in taken:
        if one.kind is not one.KEYWORD_ONLY:
            assert re.search(rf"^  {one.name} ", page, re.MULTILINE)
        if get_origin(one.annotation) is Literal:
            assert f"--{one.name} {{{','.join(get_args(one.annotation))}}}" in page
    assert max(map(len, page.splitlines())) <= 80


def test_whatever_the_parser_takes_can_be_asked_for(
    taken: dict[str, set[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    page = told(capsys, "exits", "--help=all")
    assert options(page) >= taken["exits"]
    assert re.search("  --risk[ ,]", page).start() < page.index("--trainer.")  # type: ignore[union-attr]
    assert max(len(line) for line in page.splitlines() if "tests." not in line) <= 80  # classes of tests are there too
    for section in ("trainer", "model"):
        listed = options(told(capsys, "fit", f"--{section}.help"))
        assert listed == {flag for flag in taken["fit"] if flag.partition(".")[0] == f"--{section}"}


def test_the_first_page_needs_no_library_that_computes() -> None:
    program = """
import sys
from layersim.__main__ import main
assert main([sys.argv[1], "--help"]) == 0
assert not {"torch", "lightning", "numpy", "jsonargparse", "layersim.commands.exits"} & sys.modules.keys()
"""
    for verb in ("fit", "exits"):
        subprocess.run([sys.executable, "-c", program, verb], check=True, capture_output=True, timeout=PATIENCE)


@pytest.mark.parametrize("words", [["fit", "--help"], ["--help"], ["--version"]])
def test_a_reader_that_has_seen_enough_gets_no_traceback(words: list[str]) -> None:
    """`layersim fit --help | head -0`, as far as the command sees it."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", f"import sys, layersim.__main__ as it; sys.exit(it.main({words}))"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, "")
