"""The library that a backbone's model comes from."""

from layersim.backbones import TimmBackbone, TransformersBackbone
from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.export.library import Library
from layersim.export.timm_library import TimmLibrary
from layersim.export.transformers_library import TransformersLibrary


def library_of(backbone: Backbone) -> Library:
    """Raises UserError where the backbone is neither timm's nor transformers'."""
    if isinstance(backbone, TimmBackbone):
        return TimmLibrary(backbone)
    if isinstance(backbone, TransformersBackbone):
        return TransformersLibrary(backbone)
    raise UserError(
        f"Expected a TimmBackbone or a TransformersBackbone to export, but got {type(backbone).__name__}: layersim "
        "does not know which library would build its model."
    )
