"""Which families are read: the table is made by asking the backbones themselves."""

import os

import pytest

from layersim.__main__ import main
from layersim.backbones.survey import Reading, survey
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


TIMM_READ = {
    *("beit", "deepseek_vit", "deit", "eva", "gemma4_vit", "mlp_mixer", "naflexvit", "qwen3_vit", "tnt"),
    *("vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vitamin"),
}
TIMM_REFUSED = {  # all others have layers of several widths
    "cait": "more than a norm and a pooling (blocks_token_only)",
    "coat": "it keeps no list of blocks",
    "convit": "a class token, which timm does not give",
    "convmixer": "maps of the image, which its head pools by itself, and not tokens",
    "vision_transformer_sam": "more than a norm and a pooling (neck)",
    "xcit": "more than a norm and a pooling (cls_attn_blocks)",
}


def test_families_of_timm() -> None:
    quick = ["deit", "eva", "tnt", "vision_transformer_relpos", "vitamin", "convit", "convmixer", "xcit", "vgg"]
    check_timm(list(survey("timm", quick)))


def check_timm(readings: list[Reading]) -> None:
    for reading in readings:
        expected = TIMM_REFUSED.get(reading.family, "one head cannot read them all")
        assert (reading.refused is None) == (reading.family in TIMM_READ)
        assert reading.refused is None or expected in reading.refused


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
def test_every_family_is_read_or_refused_with_a_reason() -> None:
    readings = list(survey("transformers"))
    assert [reading for reading in readings if reading.refused and reading.refused.startswith("FAULT")] == []
    assert sum(reading.refused is None for reading in readings) >= 270


@LONG
def test_every_family_of_timm() -> None:
    readings = list(survey("timm"))
    check_timm(readings)
    assert {reading.family for reading in readings} > TIMM_READ | TIMM_REFUSED.keys()
