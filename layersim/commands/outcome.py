"""What a verb reads its models' layers on, where it puts what it finds, and what the terminal says of it."""

from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from layersim.errors import UserError, as_user_error, user_path
from layersim.export import check_destination
from layersim.report.drawing.pictures import Picture, save_picture
from layersim.runs import directory
from layersim.runs.models import Source, run_of


def data_of(typed: dict[str, Any] | None, *sources: Source) -> dict[str, Any]:
    """The section `data` that is typed, or else that of the first of these models that was trained on some."""
    found = typed or next(filter(None, (source.data for source in sources)), None)
    if found is None:
        who = "The model does not tell" if len(sources) == 1 else "Neither model tells"
        raise UserError(f"{who} its data. Set --data, such as --data=Digits.")
    return found


def check_place(to: Path | None, experiment: str) -> None:
    """Refuses, before anything is read, a place that exists or cannot be written to; a new run's where None."""
    if to is None:
        directory.check_writable(directory.DEFAULT_ROOT, experiment)
    elif to.exists():  # it has no --overwrite, of which the other refusal speaks
        raise UserError(f"{to} exists. Choose another --to.")
    else:
        check_destination(to, overwrite=False)


def made_place(to: Path | None, experiment: str) -> Path:
    """The directory for what comes out, made; a new run's where `to` is None."""
    to = user_path(to or directory.reserve(directory.DEFAULT_ROOT, experiment))
    with as_user_error(f"The directory {to} cannot be made", "Change --to."):
        to.mkdir(parents=True, exist_ok=True)
    return to.resolve()


def run_directory(given: str) -> Path:
    """That which a model's path lies in."""
    if (run := run_of(Path(given))) is None:
        raise UserError(f"{given} lies in no run's directory. Set --to, a directory for what comes out.")
    return run


def show_outcome(table: RenderableType, numbers: Path, picture: Picture) -> None:
    """Draws the picture beside the file of the numbers, under its name; prints the table, and where the two lie."""
    save_picture(picture, figure := numbers.with_suffix(".png"))
    Console().print(table)
    print(f"Numbers: {numbers}\nFigure: {figure}")
