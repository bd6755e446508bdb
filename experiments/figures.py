"""`make figures`: every picture that README and docs show, drawn anew by this one program, and put in its place.

    python experiments/figures.py [digits] [sweep] [docstrings] [evidence] [--root runs/figures] [--evidence ROOT]

Without names those that need neither an extra nor finished runs: digits and sweep. What depends on the machine is
printed beside each picture: look at it, and at the numbers in the text around it, before you keep it.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import vl_convert
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
OBJECTIVES = ("last_layer", "aligned", "separate_heads")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Drawing:
    """Pictures that one piece of work gives."""

    pictures: tuple[str, ...]
    """Their places below `experiments/`."""
    depends: str
    """What of them depends on the machine."""
    takes: str
    draw: Callable[[Path, argparse.Namespace], None]
    """Puts each into a folder, by its file's name."""


def said(*words: str, folder: Path) -> str:
    """What a program says, which runs in a folder; it also says it here."""
    told = {"COLUMNS": "100", "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=os.environ | told, capture_output=True, text=True)
    print(done.stdout)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stderr}")
    return done.stdout


def digits(folder: Path, options: argparse.Namespace) -> None:
    said(str(HERE / "vision/digits/demo.py"), str(folder), f"--epochs={options.epochs}", folder=folder)
    shutil.copy(folder / "exits-tradeoff.png", folder / "exits.png")
    (page,) = (folder / "digits" / "aligned").glob("*/report.html")
    screenshot(page, folder / "page.png")


def sweep(folder: Path, options: argparse.Namespace) -> None:
    words = ("sweep", "recipe:sweeps/weights_by_learning_rate")
    table = said("-m", "layersim", *words, folder=folder)
    rows = [
        line for line in table.splitlines() if line.strip() and not line.startswith(("Best", "  layersim", "Ledger"))
    ]
    terminal("layersim " + " ".join(words), "\n".join(rows[-11:]), folder / "weights_by_learning_rate.png")


def docstrings(folder: Path, options: argparse.Namespace) -> None:
    for name in OBJECTIVES:
        said("-m", "layersim", "fit", f"--config=recipe:docstrings/{name}", folder=folder)
        (run,) = (folder / "runs/docstrings" / name).iterdir()
        last = f"--ckpt_path={run / 'checkpoints/last.ckpt'}"
        said(
            "-m",
            "layersim",
            "exits",
            last,
            "--risk=0.05",
            "--data.eval_batch_size=64",
            f"--experiment=exits/{name}",
            folder=folder,
        )
    runs = [str(run) for name in OBJECTIVES for run in (folder / "runs/exits" / name).iterdir()]
    said("-m", "layersim", "compare", *runs, "--output=all.png", folder=folder)
    shutil.copy(folder / "all-tradeoff.png", folder / "exits.png")


def evidence(folder: Path, options: argparse.Namespace) -> None:
    if options.evidence is None:
        sys.exit("Say where the finished runs are: --evidence ROOT, as experiments/paper/evidence/train.py left them.")
    said(str(HERE / "paper/evidence/results.py"), str(options.evidence.absolute()), folder=folder)
    shutil.copy(options.evidence / "evidence.png", folder)


def screenshot(page: Path, picture: Path) -> None:
    """The first screen of a page, in the Chromium that the machine has."""
    from playwright.sync_api import sync_playwright

    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        sys.exit(f"A page's picture needs Chromium or Chrome on the PATH: {', '.join(BROWSERS)}.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        shown = browser.new_page(viewport={"width": 1180, "height": 1100})
        shown.goto(page.absolute().as_uri())
        shown.wait_for_selector("svg.marks, canvas.marks")
        shown.wait_for_timeout(1000)  # charts that are drawn one after the other
        shown.screenshot(path=picture)
        browser.close()


def terminal(command: str, output: str, picture: Path) -> None:
    """A command and what it says, as a terminal shows them."""
    width = max(map(len, [command, *output.splitlines()])) + 4
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(Text.from_ansi(f"$ {command}\n\n{output}"))
    picture.write_bytes(vl_convert.svg_to_png(console.export_svg(title="layersim"), scale=1.0))


DRAWINGS = {
    "digits": Drawing(
        ("vision/digits/comparison.png", "vision/digits/exits.png", "vision/digits/page.png"),
        "single accuracies of shallow layers, by up to 0.05 between processors; the seconds of exits.png",
        "two minutes on 2 quiet cores",
        digits,
    ),
    "sweep": Drawing(
        ("sweeps/weights_by_learning_rate.png",),
        "accuracies, by up to 0.05 between processors, and so the order of trials that are close",
        "nine minutes on 2 cores",
        sweep,
    ),
    "docstrings": Drawing(
        ("text/exits.png",),
        "the time axis; accuracies by a sample or two between processors",
        "half an hour on 2 cores, and the extra `demo`",
        docstrings,
    ),
    "evidence": Drawing(
        ("paper/evidence.png",), "nothing, of finished runs; their training as that of the digits", "a minute", evidence
    ),
}
USUAL = ("digits", "sweep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DRAWINGS)}")
    parser.add_argument("--root", type=Path, default=Path("runs/figures"), help="a new folder for runs and pictures")
    parser.add_argument("--evidence", type=Path, help="where the evidence's finished runs are")
    parser.add_argument("--epochs", type=int, default=24, help="of the digits")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in DRAWINGS]:
        parser.error(f"there is no drawing {', '.join(unknown)}: choose from {', '.join(DRAWINGS)}")
    for name in options.names or USUAL:
        drawing, folder = DRAWINGS[name], (options.root / name).absolute()
        print(f"{name}: {drawing.takes}", flush=True)
        if folder.exists():
            parser.error(f"{folder} holds earlier figures: give another --root")
        folder.mkdir(parents=True)
        drawing.draw(folder, options)
        for place in drawing.pictures:
            shutil.copy(folder / Path(place).name, HERE / place)
            print(f"experiments/{place}")
        print(f"Depends on the machine: {drawing.depends}.")


if __name__ == "__main__":
    main()
