"""Makes notebooks of tutorials, with what their blocks print.

    make notebooks        # docs/tutorials/{look,objectives,exits}.ipynb, in a minute or two

A notebook is its page and nothing else: text as it is, blocks of Python and of the shell as cells, files as cells that
write them. The tests run the cells of every page.
"""

import contextlib
import glob
import io
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parent / "tutorials"
PAGES = ("look", "objectives", "exits")
BLOCK = re.compile(r"^```(python|sh|bash|yaml)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+\.\w+)\n")


def cells(page: str) -> list[dict[str, Any]]:
    """A page's text and blocks in their order, as cells without outputs."""
    found: list[dict[str, Any]] = []

    def add(kind: str, text: str) -> None:
        more = {"execution_count": None, "outputs": []} if kind == "code" else {}
        cell = {
            "cell_type": kind,
            "id": f"cell-{len(found)}",
            "metadata": {},
            "source": text.strip().splitlines(keepends=True),
        }
        if text.strip():
            found.append(cell | more)

    end = 0
    for block in BLOCK.finditer(page):
        add("markdown", page[end : block.start()])
        kind, text = block.groups()
        if kind == "sh":
            text = re.sub(r"^(?! )", "!", text.strip(), flags=re.MULTILINE)
        add("code", f"%%writefile {file[1]}\n{text}" if (file := FILE.match(text)) else text)
        end = block.end()
    add("markdown", page[end:])
    return found


def printed(cell: str, names: dict[str, Any]) -> str:
    """What a cell prints, run in the working directory, which is left out of it."""
    from layersim.__main__ import main

    with contextlib.redirect_stdout(io.StringIO()) as said:
        if cell.startswith("%%writefile "):
            first, _, text = cell.partition("\n")
            Path(first.split()[1]).write_text(text)
        elif cell.startswith("!"):
            for line in cell.replace("\\\n", "").splitlines():
                words = shlex.split(line.removeprefix("!").removeprefix("PYTHONPATH=. "))
                assert words[0] == "layersim", line
                assert main([path for word in words[1:] for path in (sorted(glob.glob(word)) or [word])]) == 0, line
        else:
            exec(cell, names)
    return said.getvalue().replace(f"{Path.cwd()}/", "")


def run(notebook: list[dict[str, Any]]) -> None:
    """Fills in the outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate((cell for cell in notebook if cell["cell_type"] == "code"), 1):
        cell["execution_count"] = number
        if text := printed("".join(cell["source"]), names):
            lines = text.splitlines(keepends=True)
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": lines}]


def main() -> None:
    os.environ |= {"COLUMNS": "90", "WANDB_MODE": "offline"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for name in PAGES:
        notebook = cells((TUTORIALS / f"{name}.md").read_text())
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            run(notebook)
        whole = {"cells": notebook, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        (TUTORIALS / f"{name}.ipynb").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        print(TUTORIALS / f"{name}.ipynb", file=sys.stderr)


if __name__ == "__main__":
    main()
