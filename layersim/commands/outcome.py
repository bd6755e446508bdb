"""Where what a verb finds is put, and what the terminal says of it."""

from pathlib import Path

from rich.console import Console, RenderableType

from layersim.errors import UserError, as_user_error
from layersim.export import check_destination
from layersim.runs import directory


def check_place(to: Path | None, experiment: str) -> None:
    """Refuses, before anything is read, a place that nothing can be written to.

    Args:
        to: what is typed; a new run's directory where None.
        experiment: of the run.

    Raises:
        UserError: it exists, or it cannot be made.
    """
    if to is None:
        directory.check_writable(directory.DEFAULT_ROOT, experiment)
    elif to.exists():  # it has no --overwrite, of which the other refusal speaks
        raise UserError(f"{to} exists. Choose another --to.")
    else:
        check_destination(to, overwrite=False)


def made_place(to: Path | None, experiment: str) -> Path:
    """The directory for what comes out, made; a new run's where `to` is None.

    Raises:
        UserError: it cannot be made.
    """
    to = (to or directory.reserve(directory.DEFAULT_ROOT, experiment)).expanduser()
    with as_user_error(f"The directory {to} cannot be made", "Change --to."):
        to.mkdir(parents=True, exist_ok=True)
    return to.resolve()


def run_directory(given: str) -> Path:
    """That which a model's path lies in.

    Raises:
        UserError: it lies in none.
    """
    path = Path(given).expanduser().resolve()
    if not path.is_dir() and path.parent.name != "checkpoints":
        raise UserError(f"{given} lies in no run's directory. Set --to, a directory for what comes out.")
    return path if path.is_dir() else path.parent.parent


def print_outcome(table: RenderableType, numbers: Path, figure: Path) -> None:
    """The table, and where numbers and figure lie, each path on a line of its own."""
    console = Console()
    console.print(table)
    for what, path in {"Numbers": numbers, "Figure": figure}.items():
        console.print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)
