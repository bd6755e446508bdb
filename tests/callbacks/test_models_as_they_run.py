"""`LayerMeasures` gives a model what its forward takes, and reads its last layer as the model itself does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from callbacks import LayerMeasures
from layersim.errors import UserError
from tests.backbones import tiny_transformers
from tests.backbones.test_other_families import XLNET
from tests.callbacks.test_layer_measures import PARTS, same, shown


class Pooling(nn.Module):
    """Pools the tokens of its last block by `pool`, and may read every block by its head, the last one first."""

    def __init__(self, pool: str = "mean", *, deep: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3))
        self.norm, self.drop, self.head = nn.LayerNorm(8), nn.Dropout(0.5), nn.Linear(8, 5)
        self.pool, self.deep = pool, deep
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x := block(x) for block in self.blocks]
        taken = {"cls": lambda x: x[:, 0], "last": lambda x: x[:, -1], "mean": lambda x: x.mean(1)}[self.pool]
        read = outputs[::-1] if self.deep else outputs[-1:]
        logits = [self.head(self.drop(self.norm(taken(each)))) for each in read]
        return logits[0]  # type: ignore[no-any-return]


def middle(tokens: Tensor) -> Tensor:
    return tokens[:, 1]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("own", ["cls", "last", "mean"])
def test_the_last_row_is_the_models_own(own: str, deep: bool) -> None:
    """Another pool, norm or list of layers would tell of a model that nobody has; the control is the model's own."""
    model, batch = Pooling(own, deep=deep), (torch.randn(32, 4, 8), torch.arange(32) % 5)
    right = (model.eval()(batch[0]).argmax(-1) == batch[1]).double().mean().item()
    for pool in ("cls", "last", "mean", middle):
        measures = LayerMeasures(model, measures="accuracy", pool=pool, **PARTS)  # type: ignore[arg-type]
        if pool == own:
            assert shown(measures, [batch])["accuracy"].values[-1] == pytest.approx(right)
            with torch.autocast("cpu", torch.bfloat16):
                measures.update(batch)
            continue
        name = pool if isinstance(pool, str) else "middle"
        with pytest.raises(
            UserError, match=f"not those that it reads of blocks.2 pooled by '{name}' behind norm 'norm'"
        ):
            measures.update(batch)
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
        with measures.watching(batch):  # in training what is dropped tells nothing
            model.train()(batch[0])
        model.eval()
    with pytest.raises(UserError, match=r"behind norm None\. Set pool as the model pools"):
        LayerMeasures(model, "blocks.*", "accuracy", pool=own, head="head").update(batch)  # type: ignore[arg-type]
    few = LayerMeasures(model, ["blocks.0", "blocks.1"], "accuracy", pool=own, norm="norm", head="head")  # type: ignore
    assert len(shown(few, [batch])["accuracy"].values) == 2, "who leaves blocks out means it"


class Around(Pooling):
    """Reads every token by its head and pools that, or uses its head's weights alone; may give probabilities."""

    def __init__(self, pool: str, *, by_weights: bool, softmax: bool) -> None:
        super().__init__(pool)
        self.by_weights, self.softmax = by_weights, softmax

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        x = nn.functional.linear(x, self.head.weight, self.head.bias) if self.by_weights else self.head(x)
        x = {"cls": lambda x: x[:, 0], "last": lambda x: x[:, -1], "mean": lambda x: x.mean(1)}[self.pool](x)
        return x.softmax(dim=-1) if self.softmax else x


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("by_weights", [False, True])
@pytest.mark.parametrize("own", ["cls", "last", "mean"])
def test_a_head_that_gives_no_sample_its_logits_is_held_against_the_model(
    own: str, by_weights: bool, softmax: bool
) -> None:
    model = Around(own, by_weights=by_weights, softmax=softmax)
    batch = (torch.randn(64, 4, 8), torch.arange(64) % 5)
    right = (model.eval()(batch[0]).argmax(-1) == batch[1]).double().mean().item()
    taken = (lambda x: model.norm(x).mean(1)) if own == "mean" else own  # what is normed is pooled
    measures = LayerMeasures(model, "blocks.*", "accuracy", pool=taken, norm=None if own == "mean" else "norm", **HEAD)  # type: ignore
    assert shown(measures, [batch])["accuracy"].values[-1] == pytest.approx(right)
    for pool in {"cls", "last", "mean"} - {own}:
        with pytest.raises(UserError, match=f"not those that it reads of blocks.2 pooled by '{pool}'"):
            LayerMeasures(model, measures="accuracy", pool=pool, **PARTS).update(batch)  # type: ignore[arg-type]


class Given(nn.Module):
    """Keeps the names of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 3)

    def taking(self, **given: Any) -> Tensor:
        self.given = {name: float(each[0, 0]) for name, each in given.items() if each is not None}
        return self.head(self.layers(sum(each for each in given.values() if each is not None)))  # type: ignore


class One(Given):
    def forward(self, x: Tensor) -> Tensor:
        return self.taking(x=x)


class Taught(Given):
    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        return self.taking(x=x) + 0 * classes.sum()


class Masked(Given):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.taking(x=x, mask=mask)


class Translating(Given):
    def forward(self, src: Tensor, target: Tensor, position: Tensor | None = None) -> Tensor:
        return self.taking(src=src, target=target, position=position)


class Any_(Given):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.taking(**{str(place): x for place, x in enumerate(xs)})


A, B, C = (torch.full((6, 4), value) for value in (1.0, 2.0, 3.0))
CLASSES = torch.arange(6) % 3
HEAD = {"head": "head"}


@pytest.mark.parametrize(
    ("model", "batch", "named", "expected"),
    [
        (One(), (A, CLASSES), {}, {"x": 1}),
        (One(), (A, CLASSES, B), {}, {"x": 1}),
        (Masked(), (A, CLASSES), {}, {"x": 1}),
        (
            Masked(),
            (A, B, CLASSES),
            {},
            r"Masked\.forward takes x, mask, but the batch has 3 entries .*, such as label=1\. Run",
        ),
        (Masked(), (A, B, CLASSES), {"label": 2, **HEAD}, {"x": 1, "mask": 2}),
        (Masked(), (A, B, CLASSES), {"label": -1}, {"x": 1, "mask": 2}),
        (Masked(), (CLASSES, A), {"label": 0}, {"x": 1}),
        (One(), (A, B, CLASSES), {"label": 2, **HEAD}, {"x": 1}),
        (Taught(), (A, CLASSES), HEAD, {"x": 1}),
        (Taught(), (A, CLASSES, B), {"label": 1, **HEAD}, {"x": 1}),
        (Translating(), (A,), {}, "takes src, target, position, but the batch has 1 entries"),
        (Any_(), (A, B), {}, "takes xs, but the batch has 2 entries without names"),
        (Any_(), (A, CLASSES), HEAD, {"0": 1}),
        (Any_(), (A, B, CLASSES), {"label": 2}, {"0": 1, "1": 2}),
        (Translating(), {"src": A, "target": B}, {}, {"src": 1, "target": 2}),
        (Translating(), {"src": A, "target": B, "position": C}, {}, {"src": 1, "target": 2, "position": 3}),
        (One(), {"image": A, "kind": CLASSES}, {"label": "kind", **HEAD}, {"x": 1}),
    ],
)
def test_a_model_is_given_what_it_takes_or_the_batch_is_refused(
    model: Given, batch: Any, named: dict[str, Any], expected: Any
) -> None:
    measures = LayerMeasures(model, "layers.*", "cosine", **named)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            measures.update(batch)
        return
    measures.update(batch, position=torch.arange(6))  # which is the samples', and no input
    assert model.given == expected


def test_labels_reach_models_that_decode_them() -> None:
    """And no others, whose loss nobody asked for: the control is what the model itself puts out of the same batch."""
    parts = {"d_model": 24, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 12, "vocab_size": 50}
    model = T5ForConditionalGeneration(T5Config(**parts, decoder_start_token_id=0)).eval()
    batch = {"input_ids": torch.arange(12).view(3, 4) + 5, "labels": torch.arange(15).view(3, 5) + 5}
    given: list[set[str]] = []
    for each in (model, classifier := tiny_transformers.build(tiny_transformers.ENCODERS["BERT"]).model):
        each.register_forward_pre_hook(lambda module, args, named: given.append({*named}), with_kwargs=True)
    measures = [LayerMeasures(model, "decoder.block.*", "cosine", pool="last") for _ in range(2)]
    with torch.no_grad(), measures[0].watching(batch):
        model(**batch)
    same(shown(measures[1], [batch]), measures[0].compute())
    LayerMeasures(classifier, "bert.encoder.layer.*", "cosine").update({**batch, "labels": torch.arange(3)})
    assert given == [{"input_ids", "labels"}, {"input_ids", "labels"}, {"input_ids"}]


def test_padding_where_a_model_looks_is_refused() -> None:
    """XLNet's classifier reads the last place, padding or not; the control is padded on the left."""
    backbone = tiny_transformers.build(XLNET)
    measures = LayerMeasures(backbone.model, measures="accuracy")
    batches = {side: tiny_transformers.batch_for(backbone, side) for side in ("left", "right")}
    batch = batches["left"] | {"labels": tiny_transformers.stock(backbone, batches["left"]).argmax(-1)}
    assert shown(measures, [batch])["accuracy"].values[-1] == 1
    with pytest.raises(
        UserError, match="XLNetForSequenceClassification looks at the last place, padding or not: pad on"
    ):
        measures.update(batches["right"] | {"labels": batch["labels"]})
