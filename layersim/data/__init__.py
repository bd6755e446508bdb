"""Data modules and the samplers that make them exact on any number of processes."""

from layersim.data.base import SplitDataModule
from layersim.data.digits import Digits
from layersim.data.docstrings import Docstrings
from layersim.data.images import Images
from layersim.data.inputs import ImageInputs, Inputs, TextInputs
from layersim.data.language_modeling import LanguageModeling
from layersim.data.samplers import EvaluationSampler, TrainSampler
from layersim.data.splits import Split
from layersim.data.stdlib_code import StdlibCode
from layersim.data.text import Text
from layersim.data.tokenizers import ByteTokenizer, Tokenizer, open_tokenizer

__all__ = [
    "ByteTokenizer",
    "Digits",
    "Docstrings",
    "EvaluationSampler",
    "ImageInputs",
    "Images",
    "Inputs",
    "LanguageModeling",
    "Split",
    "SplitDataModule",
    "StdlibCode",
    "Text",
    "TextInputs",
    "Tokenizer",
    "TrainSampler",
    "open_tokenizer",
]
