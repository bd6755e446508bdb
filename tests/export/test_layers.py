"""Which layers an export keeps."""

import pytest

from layersim.errors import UserError
from layersim.export.truncation import kept_layers


def test_a_number_keeps_the_first_layers() -> None:
    assert kept_layers(2, 3) == [0, 1]
    assert kept_layers(3, 3) == [0, 1, 2]
    assert kept_layers([0, 2], 3) == [0, 2]


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_a_number_outside_the_model_is_refused(layers: int) -> None:
    with pytest.raises(UserError, match=rf"Expected 1 … 3 layers to keep, but got {layers}.*--layers"):
        kept_layers(layers, 3)


@pytest.mark.parametrize("layers", [[], [1, 2], [0, 2, 1], [0, 0], [0, 3]])
def test_a_list_that_is_no_ascending_choice_is_refused(layers: list[int]) -> None:
    with pytest.raises(UserError, match="ascending layer numbers from 0 to at most 2"):
        kept_layers(layers, 3)
