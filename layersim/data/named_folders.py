"""What the names of a data set's folders say: its splits and the classes of its images."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.data_files import SPLIT_KEYWORDS

from layersim.data.account import below
from layersim.errors import UserError

_WORDS = [*dict.fromkeys(word for words in SPLIT_KEYWORDS.values() for word in words)]


def refuse_words_for_splits(location: Path, files: Mapping[str, Sequence[str]], *, images: bool) -> None:
    """Raises a UserError where the words of splits, which `datasets` looks for anywhere in a path, are in the names of
    something else: where a file would be read twice, or classes would be splits."""
    if not {*files} <= {*map(str, SPLIT_KEYWORDS)}:  # which a README names, file by file
        return
    found = [(file, split) for split, paths in files.items() for file in paths if not is_metadata(file)]
    times = Counter(file for file, _ in found)
    words = f"since {', '.join(_WORDS)} stand for splits wherever they are words of a name"
    if twice := [file for file in times if times[file] > 1]:
        splits = dict.fromkeys(split for file, split in found if file == twice[0])
        raise UserError(
            f"{len(twice)} files, such as {os.path.relpath(twice[0], location)}, would be read twice, for "
            f"{' and '.join(splits)} ({words}): rename the folder or file whose name is meant otherwise"
        )
    # images that lie right in a folder of theirs: it may be one of a class
    places = [(os.path.relpath(file, location).split(os.sep), split) for file, split in found]
    tops = {parts[0]: split for parts, split in places if len(parts) == 2}
    split_names = re.compile(rf"({'|'.join((*_WORDS, 'data'))})[\W_\d]*", re.IGNORECASE)
    others = [top for top in tops if not split_names.fullmatch(top)] if images else []
    kinds = {Path(file).suffix for file in times}
    left_out = (
        [file for file in below(location)[0] if file not in times and Path(file).suffix in kinds] if others else []
    )
    if left_out:
        raise UserError(
            f"{len(left_out)} images, such as {os.path.relpath(left_out[0], location)}, would be left out, as "
            f"{others[0]} is taken for the split {tops[others[0]]} ({words}): put the folders of all classes into one "
            "named train"
        )


def is_metadata(file: str) -> bool:
    """Whether it describes images, and is none."""
    return os.path.basename(file).startswith("metadata.")


def refuse_strays(files: Sequence[str], option: str) -> None:
    """Raises a UserError where some images lie at another depth than those in folders of classes: `datasets` would then
    take none of the folders for a class."""
    if any(map(is_metadata, files)):
        return
    depths = Counter(file.count(os.sep) for file in files)
    if len(depths) > 1:
        common = depths.most_common(1)[0][0]
        strays = [file for file in files if file.count(os.sep) != common]
        raise UserError(
            f"{len(strays)} of {len(files)} images lie beside or below the folders of classes, such as {strays[0]}, so "
            f"that no folder can be taken for a class: move or remove them, or change --data.{option}"
        )


def other_folders_than_training(files: dict[str, list[str]]) -> bool:
    """Whether training's images lie in folders named after their classes, and some of another split's do not.

    `datasets` would then drop the labels of all, or take the folders of the others for further classes.
    """
    if any(is_metadata(file) for paths in files.values() for file in paths):
        return False
    training, *others = ([os.path.dirname(file) for file in paths] for paths in files.values())
    classes = {os.path.basename(place) for place in training}
    labelled = len(classes) > 1 and len({place.count(os.sep) for place in training}) == 1
    return labelled and any(os.path.basename(place) not in classes for places in others for place in places)
