"""One classifier for every layer of a transformer: train it, measure it, see how many layers a task needs.

The names below are imported when first used, so that `import layersim` and the command's `--help` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layersim.backbones import Backbone, TimmBackbone, TransformersBackbone
    from layersim.data import Digits, Docstrings, Images, LanguageModeling, Split, SplitDataModule, StdlibCode, Text
    from layersim.errors import UserError
    from layersim.evaluation import evaluate
    from layersim.exits import EarlyExit
    from layersim.heads import Head, LinearProbes, SeparateHeads, SharedHead, TunedLens
    from layersim.module import LayerwiseModule
    from layersim.objectives import (
        Aligned,
        Alternating,
        CosineRegularized,
        Distilled,
        KLToLast,
        LastLayer,
        Mixed,
        Objective,
        Progressive,
        UncertaintyWeighted,
    )
    from layersim.optimization.parameter_groups import ParameterGroups
    from layersim.outputs import LayerFeatures, LayerOutput, Readout
    from layersim.report import Quantity
    from layersim.similarity import Measure
    from layersim.tapping import FeatureTap

__all__ = [
    "Aligned",
    "Alternating",
    "Backbone",
    "CosineRegularized",
    "Digits",
    "Distilled",
    "Docstrings",
    "EarlyExit",
    "FeatureTap",
    "Head",
    "Images",
    "KLToLast",
    "LanguageModeling",
    "LastLayer",
    "LayerFeatures",
    "LayerOutput",
    "LayerwiseModule",
    "LinearProbes",
    "Measure",
    "Mixed",
    "Objective",
    "ParameterGroups",
    "Progressive",
    "Quantity",
    "Readout",
    "SeparateHeads",
    "SharedHead",
    "Split",
    "SplitDataModule",
    "StdlibCode",
    "Text",
    "TimmBackbone",
    "TransformersBackbone",
    "TunedLens",
    "UncertaintyWeighted",
    "UserError",
    "evaluate",
]

_HOMES = {
    "backbones": ("Backbone", "TimmBackbone", "TransformersBackbone"),
    "data": ("Digits", "Docstrings", "Images", "LanguageModeling", "Split", "SplitDataModule", "StdlibCode", "Text"),
    "errors": ("UserError",),
    "evaluation": ("evaluate",),
    "exits": ("EarlyExit",),
    "heads": ("Head", "LinearProbes", "SeparateHeads", "SharedHead", "TunedLens"),
    "module": ("LayerwiseModule",),
    "objectives": (
        *("Aligned", "Alternating", "CosineRegularized", "Distilled", "LastLayer", "Mixed", "Objective", "Progressive"),
        *("KLToLast", "UncertaintyWeighted"),
    ),
    "optimization.parameter_groups": ("ParameterGroups",),
    "outputs": ("LayerFeatures", "LayerOutput", "Readout"),
    "report": ("Quantity",),
    "similarity": ("Measure",),
    "tapping": ("FeatureTap",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"layersim.{home}"), name)
    raise AttributeError(f"module 'layersim' has no attribute {name!r}")
