"""Docstrings of small packages whose every text is known."""

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

from layersim.data import Docstrings
from layersim.data.docstrings import PACKAGES, balanced, distinct, documented, naming, prose, read_prose, words
from layersim.data.sentence_split import SentenceSplit
from layersim.errors import UserError
from layersim.installed_packages import package_folder

NESTED = '''
"""The module."""
class A:
    """The class."""
    def f(self):
        """The method."""
        for i in ():
            def g():
                """Inside a loop."""
    if True:
        async def h(self):
            """Under a condition."""
    x = "no docstring"
try:
    pass
except ValueError:
    def handled():
        """In a handler."""
else:
    def fine():
        """In an else."""
match 1:
    case 1:
        def matched():
            """In a case."""
'''


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Packages of 40, 30 and 50 docstrings of their own; importing one fails."""
    for name, count in (("alpha", 40), ("be", 30), ("gammas", 50)):
        lines = ["raise RuntimeError('this must not be imported')"]
        for number in range(count):
            lines += [f"def f{number}():", f'    """{text(name, number)}\n\n    Parameters\n    ----------\n    x"""']
        lines += ["def shared():", '    """A text that each package has, word by word."""']
        lines += ["def again():", f'    """{text(name, 0).upper()}  """', "def short():", '    """Short."""']
        folder = tmp_path / name
        (folder / "tests").mkdir(parents=True)
        (folder / "__init__.py").write_text("\n".join(lines))
        (folder / "tests" / "__init__.py").write_text(f'"""A test of {name}, which is left out altogether."""')
        (folder / "broken.py").write_text('"""A template with a docstring that nobody can read."""\n{% broken %}')
    monkeypatch.syspath_prepend(tmp_path)
    return ["alpha", "be", "gammas"]


def text(package: str, number: int, first: int | None = None) -> str:
    of_its_own = number + (first or 100 * len(package))  # so that they differ where the names are masked, too
    return f"Number {of_its_own} of what the package {package} computes for {'xyz'[number % 3]}."


def opened(packages: list[str], **options: Any) -> Docstrings:
    data = Docstrings(packages=packages, tokenizer="bytes", **options)
    data.setup()
    return data


def texts(data: Docstrings, role: str) -> dict[int, tuple[str, int]]:
    """Text and label by index."""
    split = data.splits[role]
    assert isinstance(split, SentenceSplit)
    assert split.labels is not None
    found = zip(split.columns[0].to_pylist(), split.labels.tolist(), strict=True)
    return dict(zip(split.index.tolist(), found, strict=True))


def test_equally_many_of_each_package_without_what_they_share(packages: list[str]) -> None:
    data = opened(packages, val_fraction=0.3, test_fraction=0.2)
    splits = [texts(data, role) for role in ("train", "val", "test")]
    every = {index: sample for split in splits for index, sample in split.items()}
    assert sorted(every) == list(range(90))
    assert sum(map(len, splits)) == 90
    for label, package in enumerate(packages):
        mine = {found for found, given in every.values() if given == label}
        candidates = {words(text("library", number, 100 * len(package))) for number in range(50)}
        assert len(mine) == 30
        assert {words(found) for found in mine} <= candidates
    assert [label for _, label in (every[index] for index in range(90))] == [0] * 30 + [1] * 30 + [2] * 30
    assert data.class_names == packages
    assert [len(split) for split in splits] == [45, 27, 18]


def test_limits_leave_the_splits_as_they_are(packages: list[str]) -> None:
    some, every = (opened(packages, **limits) for limits in ({"max_train_samples": 9, "max_eval_samples": 4}, {}))
    assert [len(split) for split in some.splits.values()] == [9, 4]
    assert all(texts(some, role).items() < texts(every, role).items() for role in ("train", "val"))


def test_batches(packages: list[str]) -> None:
    data = opened(packages, batch_size=4, per_package=8)
    batch = next(iter(data.train_dataloader()))
    known = texts(data, "train")
    for index, tokens, label in zip(batch["index"].tolist(), batch["input_ids"], batch["label"], strict=True):
        said, given = known[index]
        assert bytes(token for token in tokens.tolist() if token < 256).decode() == said
        assert label == given


def test_names_are_masked_in_every_text(packages: list[str]) -> None:
    for role in ("train", "val"):
        for said, _ in texts(opened(packages), role).values():
            assert said.casefold().startswith("number")
            assert "the package library computes" in said.casefold()
    named = naming(["numpy", "sklearn"])
    assert named.sub("_", "NumPy's np.dot, numpy.linalg, scikit-learn; not npx or mynumpy") == (
        "_'s _.dot, _.linalg, _; not npx or mynumpy"
    )


def test_no_words_lie_in_two_splits(packages: list[str], tmp_path: Path) -> None:
    """Though case, spacing and punctuation differ; the control counts how often they meet without that care."""
    lines = ["raise RuntimeError"]
    for number in range(60):
        lines += [f"def f{number}():", f'    """A text that is said three times, number {number}."""']
        lines += [f"def g{number}():", f'    """A text  that is said three times; number {number}!"""']
        lines += [f"def h{number}():", f'    """a TEXT that is said three times: number {number}"""']
    (tmp_path / "alpha" / "__init__.py").write_text("\n".join(lines))
    data = opened(["alpha", "gammas"], val_fraction=0.5, per_package=100)
    parts = [{words(said) for said, _ in texts(data, role).values()} for role in ("train", "val")]
    assert not parts[0] & parts[1]
    assert min(map(len, parts)) > 20
    raw = [said for said in read_prose(tmp_path / "alpha", seed=0) if "three times" in said]
    assert (len(raw), len(distinct(raw, most=1000))) == (180, 60)
    careless = [{words(said) for said in half} for half in (raw[::2], raw[1::2])]
    assert careless[0] & careless[1]


def test_the_seed_draws_the_splits(packages: list[str]) -> None:
    assert texts(opened(packages), "val") == texts(opened(packages), "val")
    assert texts(opened(packages, seed=1), "val") != texts(opened(packages), "val")
    # validation is the same whatever is tested on
    assert texts(opened(packages, test_fraction=0.3), "val") == texts(opened(packages), "val")


def test_nothing_is_imported(packages: list[str]) -> None:
    opened(packages)
    assert not set(packages) & sys.modules.keys()


def test_every_docstring_is_found() -> None:
    tree = ast.parse(NESTED)
    found = [ast.get_docstring(node) for node in documented(tree)]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    expected = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    assert sorted(map(str, found)) == sorted(map(str, expected))
    assert found[:4] == ["The module.", "The class.", "The method.", "Inside a loop."]
    assert len(found) == 8


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Sum  of\nelements.", "Sum of elements."),
        ("Sum.\n\nOver an axis.\n\nParameters\n----------\na : array", "Sum. Over an axis."),
        ("Sum.\n\nArgs:\n    a: array", "Sum."),
        ("Sum.\n\n>>> sum([1])\n1", "Sum."),
        ("Sum.\n\n.. note:: slow\n\nMore.", "Sum."),
        ("Sum.\n:param a: array", "Sum."),
        ("A title\n=======\n\nSum.", ""),
        ("Note: this stays.", "Note: this stays."),
    ],
)
def test_prose_ends_where_the_structure_begins(docstring: str, expected: str) -> None:
    assert prose(docstring) == expected


def test_the_packages_by_default_are_here() -> None:
    for package in PACKAGES:
        folder = package_folder(package, "change --data.packages")
        assert (folder / "__init__.py").is_file()
        assert next(read_prose(folder, seed=0)) is not None


def test_balanced_by_hand() -> None:
    assert balanced([["A.", "b", "c"], ["a", "d"], ["e", "f"]], most=5) == [["b"], ["d"], ["e"]]
    with pytest.raises(UserError, match=r"the packages give 0, 1 texts of their own: .* --data\.packages"):
        balanced([["a"], ["A", "b"]], most=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packages": ["numpy", "no_such_package"]}, r"expected an installed top-level package, got no_such_package: "),
        ({"packages": ["numpy", "scipy.linalg"]}, r"expected an installed top-level package, got scipy\.linalg"),
        ({"packages": ["this", "numpy"]}, r"the package this has no folder of source files: change --data\.packages"),
        ({"packages": ["numpy"]}, r"two or more different packages, got \['numpy'\]: change --data\.packages"),
        ({"packages": ["numpy", "numpy"]}, r"two or more different packages"),
        ({"per_package": 0}, r"per_package must be at least 1, got 0"),
        ({"val_fraction": 0.0}, "Expected val_fraction above 0 and below 1, but got 0.0"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], message: str, packages: list[str]) -> None:
    with pytest.raises(UserError, match=message):
        opened(**{"packages": packages, **options})
