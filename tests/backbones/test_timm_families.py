"""Every module of timm is read, or refused with the reason; those of several widths only where LAYERSIM_LONG=1."""

import os

import pytest
import timm
from timm.models import list_modules

from layersim.backbones import TimmBackbone
from layersim.errors import UserError
from tests.backbones.timm_families import FAMILIES, READ, REFUSED

LONG = pytest.mark.skipif(os.environ.get("LAYERSIM_LONG") != "1", reason="long: builds a model of each module of timm")


def open_family(module: str) -> TimmBackbone:
    family = FAMILIES[module]
    assert family.name in timm.list_models(module=module)
    return TimmBackbone(family.name, num_classes=5, img_size=family.img_size, model_args=family.model_args)


@pytest.mark.parametrize("module", READ)
def test_a_module_that_is_read(module: str) -> None:
    """On construction the shared head at the last layer was compared with the model's own logits."""
    backbone = open_family(module)
    assert backbone.num_layers == FAMILIES[module].model_args.get("depth", backbone.num_layers)


@pytest.mark.parametrize("module", REFUSED)
def test_a_module_of_one_width_that_is_refused(module: str) -> None:
    with pytest.raises(UserError, match=FAMILIES[module].refused):
        open_family(module)


@LONG
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", [module for module in list_modules() if timm.list_models(module=module)])
def test_every_module_of_timm(module: str) -> None:
    if module in READ:
        open_family(module)
    else:
        with pytest.raises(UserError, match=FAMILIES[module].refused):
            open_family(module)
