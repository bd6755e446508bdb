"""Models of timm."""

import json
from collections.abc import Sequence
from pathlib import Path

import timm
from safetensors.torch import load_file
from timm.models import get_model_args, save_for_hf
from torch import nn

from layersim.errors import as_user_error
from layersim.export.library import Library
from layersim.export.serving import Serving

_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


class TimmLibrary(Library):
    """A folder in timm's own format: weights as safetensors, and `config.json` with the arguments that rebuild it."""

    name = "timm"
    usage = (
        "import json\n"
        "import timm\n"
        "from safetensors.torch import load_file\n"
        "\n"
        'config = json.load(open("config.json"))  # pretrained_cfg in it tells input size, mean and std\n'
        'model = timm.create_model(config["architecture"], **config["model_args"]).eval()\n'
        'model.load_state_dict(load_file("model.safetensors"))\n'
        "\n"
        '# or in one line, from anywhere: timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True)\n'
    )

    def untrained(self, kept: Sequence[int], *, tied: bool) -> nn.Module:
        configuration = dict(self.backbone.model.pretrained_cfg)
        arguments = get_model_args(self.backbone.model) | {"depth": len(kept)}
        if isinstance(listed := arguments.get("num_kv_heads"), list | tuple):  # a value for each block
            arguments["num_kv_heads"] = [listed[layer] for layer in kept]
        name = configuration["architecture"]
        with as_user_error(f"timm cannot build {name} with {len(kept)} blocks", "Change --layers."):
            model: nn.Module = timm.create_model(name, pretrained_cfg=configuration, **arguments)
        return model.to(next(self.model.parameters()))

    def save(self, model: nn.Module, folder: Path, serving: Serving) -> None:
        labels = {"label_names": list(serving.class_names)} if serving.class_names else {}
        configuration = {**{key: self.backbone.data_config[key] for key in _PREPROCESSING}, **serving.preprocessing}
        with as_user_error("timm cannot write the model and the arguments that rebuild it"):
            save_for_hf(model, str(folder), labels, safe_serialization=True, data_config=configuration)

    def load(self, folder: Path, like: nn.Module) -> nn.Module:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with as_user_error("timm cannot open the export again", "Nothing was exported."):
            model: nn.Module = timm.create_model(config["architecture"], **config["model_args"])
            model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.to(next(self.model.parameters()))
