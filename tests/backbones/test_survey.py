"""Which families are read: the table is made by asking the backbones themselves."""

import os

import pytest

from layersim.__main__ import main
from layersim.backbones.survey import Library, survey
from layersim.errors import UserError

LONG = pytest.mark.skipif(os.environ.get("LAYERSIM_LONG") != "1", reason="builds every family: LAYERSIM_LONG=1 runs it")


def test_families_of_each_kind() -> None:
    readings = {(reading.family, reading.use): reading.refused for reading in survey("transformers", READ + REFUSED)}
    assert {family for (family, _), refused in readings.items() if refused is None} >= set(READ)
    for family, reason in zip(REFUSED, ("widths", "no list of blocks", "cannot follow"), strict=True):
        (refused,) = (said for (name, use), said in readings.items() if name == family and use != "language model")
        assert refused is not None
        assert reason in refused


READ = ["bert", "clip", "cohere", "granite", "bart", "xlnet", "gemma2", "qwen2", "dinov2_with_registers"]
REFUSED = ["pvt", "mobilenet_v2", "eurobert"]


def test_the_verb_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--library", "transformers", "vit"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| family | use | read |",
        "| --- | --- | --- |",
        "| vit | images | yes |",
        "",
    ]


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(UserError, match="timm has no family vitt"):
        list(survey("timm", ["vitt"]))


@LONG
@pytest.mark.parametrize(("library", "at_least"), [("transformers", 270), ("timm", 5)])
def test_every_family_is_read_or_refused_with_a_reason(library: Library, at_least: int) -> None:
    readings = list(survey(library))
    assert [reading for reading in readings if reading.refused and reading.refused.startswith("FAULT")] == []
    assert sum(reading.refused is None for reading in readings) >= at_least
