"""A backbone around a plain nn.Module, in under 20 lines: trained, left early, cut and exported as any other."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from callbacks import LayerAccuracyMonitor
from layersim import Backbone, LayerwiseModule, SharedHead, UserError
from layersim.exits.policies import Confidence
from layersim.exits.runner import EarlyExit
from layersim.export import Serving, export_as, truncate
from layersim.export.truncation import readout_without
from layersim.objectives import Aligned, UncertaintyWeighted
from layersim.optimization.parameter_groups import ParameterGroups
from layersim.outputs import LayerFeatures
from tests import tiny
from tests.export.exported import separate

LAYERS, SIZE = 4, (1, 8, 8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0] * seen
        return x + self.mlp(x)


class Encoder(nn.Module):
    """As its author would write it, with a mask that each block is given beside its tokens."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, 16, 2, stride=2)
        self.layers = nn.ModuleList([Block() for _ in range(layers)])
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).mT
        seen = torch.ones(x.shape[0], x.shape[1], 1, device=x.device)
        for layer in self.layers:
            x = layer(x, seen)
        return self.head(self.norm(x[:, 0]))


class EncoderBackbone(Backbone):
    num_classes, input_size = 10, SIZE

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.model, self.num_layers = Encoder(layers), layers

    blocks = property(lambda self: self.model.layers)
    final_norm = property(lambda self: self.model.norm)
    classifier = property(lambda self: self.model.head)

    def inputs(self, batch: Any) -> dict[str, Any]:
        return {"image": batch["image"]}

    def pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        return tokens[:, 0]


def batch(samples: int = 24) -> dict[str, Tensor]:
    return {"image": torch.randn(samples, *SIZE, generator=torch.Generator().manual_seed(1))}


def backbone() -> EncoderBackbone:
    return EncoderBackbone().eval()


@torch.no_grad()
def test_features_are_what_the_blocks_put_out_and_the_head_gives_the_models_logits() -> None:
    own, images = backbone(), batch()["image"]
    tokens, expected = own.model.patches(images).flatten(2).mT, []
    for block in own.blocks:
        tokens = block(tokens, torch.ones(1))
        expected.append(tokens[:, 0])
    features = own(batch()).values
    torch.testing.assert_close(features, torch.stack(expected))
    torch.testing.assert_close(own(batch(), [1, 3]).values, torch.stack(expected)[[1, 3]])
    torch.testing.assert_close(SharedHead(own).logits(features[-1:], [3])[0], own.model(images))


def test_it_trains_and_is_measured(tmp_path: Path) -> None:
    module, monitor = LayerwiseModule(EncoderBackbone(), Aligned()), LayerAccuracyMonitor()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[monitor], **options)
    trainer.fit(module, tiny.digits())
    assert all(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert len(monitor.quantities["accuracy"].values) == LAYERS


def test_samples_leave_early_as_if_all_layers_had_been_computed() -> None:
    own = backbone()
    head = SharedHead(own)
    with torch.no_grad():
        logits = head.logits(own(batch()).values, range(LAYERS))
    sure = logits.softmax(-1).amax(-1)
    threshold = float(sure[:-1].median())
    expected = torch.where(sure >= threshold, torch.arange(LAYERS)[:, None], LAYERS - 1).amin(0)
    exited = EarlyExit(own, head, Confidence(), threshold)(batch())
    assert exited.exit_layers.tolist() == expected.tolist()
    assert len(expected.unique()) > 2
    torch.testing.assert_close(exited.logits, logits[expected, torch.arange(24)])


@pytest.mark.parametrize("layers", [2, [0, 2]])
@torch.no_grad()
def test_a_cut_model_is_the_authors_own_and_gives_the_readout(layers: int | list[int]) -> None:
    own = backbone()
    for head in (SharedHead(own), separate(own)):
        model = truncate(own, head, layers)
        assert isinstance(model, Encoder)
        assert len(model.layers) == 2
        expected = readout_without(own, head, [0, 1] if layers == 2 else [0, 2], batch())
        torch.testing.assert_close(model(batch()["image"]), expected)


@torch.no_grad()
def test_the_checkpoint_loads_with_the_lines_of_its_readme(tmp_path: Path) -> None:
    own = backbone()
    head = separate(own)
    export_as("stock", own, head, 2, tmp_path / "cut", serving=Serving([f"digit {n}" for n in range(10)]))
    code = (tmp_path / "cut/README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"Encoder": Encoder}
    exec(code.replace("(...)", "(2)").replace('"model.', f'"{tmp_path}/cut/model.'), names)
    torch.testing.assert_close(names["model"](batch()["image"]), readout_without(own, head, [0, 1], batch()))
    record = json.loads((tmp_path / "cut/layersim.json").read_text())
    assert record["classes"][9] == "digit 9"
    assert (record["model"], record["layers"], record["library"]) == ("Encoder", [1, 2], "torch")


@pytest.mark.filterwarnings("ignore")
def test_programs(tmp_path: Path) -> None:
    own = backbone()
    head = SharedHead(own).eval()
    expected = readout_without(own, head, [0, 1], batch(5))
    export_as("torch", own, head, 2, tmp_path / "program")
    found = torch.export.load(tmp_path / "program/model.pt2").module()(image=batch(5)["image"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    runtime = pytest.importorskip("onnxruntime")
    export_as("onnx", own, head, 2, tmp_path / "onnx")
    (logits,) = runtime.InferenceSession(tmp_path / "onnx/model.onnx").run(None, {"image": batch(5)["image"].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


class Closed(EncoderBackbone):
    """Gives features, but does not say how its blocks are called."""

    blocks = Backbone.blocks


class Whole(Closed):
    """Has a forward in place of blocks."""

    def forward(self, batch: Any, layers: Any = None) -> LayerFeatures:
        tokens, found = self.model.patches(batch["image"]).flatten(2).mT, []
        for block in self.model.layers:
            tokens = block(tokens, torch.ones(1))
            found.append(tokens[:, 0])
        chosen = found if layers is None else [found[layer] for layer in layers]
        return LayerFeatures(torch.stack(chosen), batch["label"], batch.get("position"))


def test_without_blocks_it_trains_with_groups_and_is_told_of_what_is_not_finite(tmp_path: Path) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "default_root_dir": tmp_path, "max_steps": 2, "limit_val_batches": 0}
    for more in ({"objective": UncertaintyWeighted()}, {"parameter_groups": ParameterGroups(head_lr=1e-3)}):
        Trainer(**options).fit(LayerwiseModule(Whole(), **{"objective": Aligned()} | more), tiny.digits())  # type: ignore
    own = Whole()
    own.model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(UserError, match=r"the gradient of backbone\.model\.head\.weight, of sample"):
        Trainer(**options).fit(LayerwiseModule(own, Aligned()), tiny.digits())
    decaying = LayerwiseModule(Whole(), Aligned(), parameter_groups=ParameterGroups(layer_decay=0.5))
    with pytest.raises(UserError, match="Whole does not say how its blocks are called"):
        Trainer(**options).fit(decaying, tiny.digits())


def test_what_a_backbone_does_not_say_is_named() -> None:
    closed = Closed().eval()
    with pytest.raises(UserError, match=r"Closed does not say how its blocks are called.*give it blocks"):
        EarlyExit(closed, SharedHead(closed), Confidence(), 0.5)(batch())
    with pytest.raises(UserError, match=r"Closed does not say how its blocks are called.*give it blocks"):
        truncate(closed, SharedHead(closed), 2)
    sizeless = backbone()
    sizeless.input_size = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="neither an input_size nor a tiny_batch"):
        truncate(sizeless, SharedHead(sizeless), 2)
    wrong = backbone()
    wrong.num_layers = 5
    with pytest.raises(UserError, match="ran 4 of its 5 blocks"):
        wrong(batch())
