"""What objectives make of what they read: closed forms, and the numbers that trainings always gave."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from layersim import heads
from layersim.errors import UserError
from layersim.heads import Head, SeparateHeads, SharedHead
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
    Reading,
    Step,
    UncertaintyWeighted,
    reading,
)
from tests import tiny
from tests.test_heads import Plain

WEIGHTS = [0.2, 0.3, 0.5]
HEADS = pytest.mark.parametrize("make", [SharedHead, SeparateHeads])


@pytest.fixture
def features() -> Tensor:
    return torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, 0, 1])


def read(head: Head, features: Tensor, targets: Tensor, layers: list[int] | None = None, **known: Tensor) -> Reading:
    layers = layers or [0, 1, 2]
    return Reading(head, features[layers], targets, layers, 3, None if known else Step(), **known)


@HEADS
def test_all_that_is_read_says_the_same(make: type[Head], features: Tensor, targets: Tensor) -> None:
    """Losses from classifiers or from logits that are there already; their sum in one pass, from them, or learned."""
    head = make(Plain())
    losses = torch.stack([torch.nn.functional.cross_entropy(rows, targets) for rows in head.logits(features, range(3))])
    total = losses @ torch.tensor(WEIGHTS)
    torch.testing.assert_close(read(head, features, targets).loss(WEIGHTS), total)
    torch.testing.assert_close(read(head, features, targets).loss(torch.tensor(WEIGHTS)), total)
    torch.testing.assert_close(read(head, features, targets).losses, losses)
    after = read(head, features, targets)
    torch.testing.assert_close(after.logits(), head.logits(features, range(3)))
    torch.testing.assert_close(after.losses, losses)
    torch.testing.assert_close(after.loss(WEIGHTS), total)
    some = read(head, features, targets, [0, 2])
    torch.testing.assert_close(some.loss([0.25, 0.0, 0.75]), 0.25 * losses[0] + 0.75 * losses[2])
    torch.testing.assert_close(some.losses, losses[[0, 2]])


@HEADS
@pytest.mark.parametrize("table", [2**20, 0])
def test_losses_have_the_gradients_of_the_formula(
    make: type[Head], table: int, features: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the largest of them, and of a learned sum, in features, classifiers and weights."""
    monkeypatch.setattr(heads, "MAX_TABLE", table)

    def gradients(plain: bool) -> list[Tensor | None]:
        torch.manual_seed(0)
        head, leaf, scale = make(Plain()), features.clone().requires_grad_(), torch.tensor(WEIGHTS, requires_grad=True)
        found = read(head, leaf, targets)
        if plain:
            found.logits()
        (found.losses.max() + read(head, leaf, targets).loss(scale.exp())).backward()
        return [leaf.grad, scale.grad, *(parameter.grad for parameter in head.parameters())]

    for ours, formula in zip(gradients(plain=False), gradients(plain=True), strict=True):
        torch.testing.assert_close(ours, formula)
        assert ours is not None


def test_a_layer_of_weight_zero_is_not_read(features: Tensor, targets: Tensor) -> None:
    head = SharedHead(Plain())
    spoilt = features.clone()
    spoilt[0] = torch.nan
    expected = head(features, targets, range(3)).losses[2]
    torch.testing.assert_close(read(head, spoilt, targets).loss([0.0, 0.0, 1.0]), expected)
    losses = torch.tensor([torch.inf, 1.0, 2.0])
    assert read(head, features, targets, known_losses=losses).loss([0.0, 0.5, 0.5]) == 1.5, "nor in evaluation"


def test_more_logits_than_fit_are_refused(features: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LOGITS", 3 * 7 * 5 - 1)
    with pytest.raises(UserError, match=r"3 layers × 7 samples × 5 classes, 1\.0 times .* Lower --data\.batch_size"):
        read(SharedHead(Plain()), features, targets).logits()


def test_uncertainty_weighs_each_layer_by_its_loss(features: Tensor, targets: Tensor) -> None:
    """At first the plain sum; where the losses stand still, the minimum is at s = ln 2 CE, Σ (1 + ln 2 CE) / 2."""
    head, objective = SharedHead(Plain()), UncertaintyWeighted()
    objective.build(3)
    found = read(head, features.double(), targets)
    head.double()
    losses = found.losses.detach()
    assert objective(found).item() == pytest.approx(losses.sum().item())
    objective.log_variances.data = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    value = objective(read(head, features.double(), targets))
    expected = sum(math.exp(-s) * loss + s / 2 for s, loss in zip((0.3, -1.0, 2.0), losses.tolist(), strict=True))
    assert value.item() == pytest.approx(expected)
    value.backward()
    slopes = [0.5 - math.exp(-s) * loss for s, loss in zip((0.3, -1.0, 2.0), losses.tolist(), strict=True)]
    assert objective.log_variances.grad.tolist() == pytest.approx(slopes)
    objective.log_variances.data = (2 * losses).log()
    objective.log_variances.grad = None
    best = objective(read(head, features.double(), targets))
    best.backward()
    assert objective.log_variances.grad.abs().max() < 1e-12
    assert best.item() == pytest.approx((0.5 + (2 * losses).log() / 2).sum().item())
    evaluated = objective(read(head, features.double(), targets, known_losses=losses))
    assert evaluated.item() == pytest.approx(best.item()), "evaluation reports the same"


def test_cosine_regulariser_against_its_formula(targets: Tensor) -> None:
    features = torch.randn(3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for layer, weight in enumerate([1 / 6, 2 / 6, 3 / 6]):
        for a, b in zip(features[layer], features[-1], strict=True):
            expected += 0.7 * weight * (1 - float(a @ b / (a.norm() * b.norm()))) / 7
    head, objective = SharedHead(Plain()).double(), CosineRegularized(beta=0.7)
    losses = read(head, features, targets).losses
    assert objective(read(head, features, targets)).item() == pytest.approx(losses[-1].item() + expected, abs=1e-12)
    assert objective.layers(3, Step()) == [0, 1, 2], "all features enter the penalty"
    assert objective.choices(3) == [[2]], "and one loss the sum"


def test_cosine_regulariser_vanishes_where_layers_agree(targets: Tensor) -> None:
    features = torch.randn(1, 7, 4).repeat(3, 1, 1) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    found = read(SharedHead(Plain()), features, targets)
    assert CosineRegularized(beta=10)(found).item() == pytest.approx(found.losses[-1].item(), abs=1e-5)


def distilled_by_hand(logits: Tensor, targets: Tensor, weights: list[float], alpha: float, temperature: float) -> float:
    """Sums over single samples and classes, in Python's floats."""
    log_p, soft = logits.double().log_softmax(-1), (logits.double() / temperature).softmax(-1)
    layers, samples, _ = logits.shape
    total = 0.0
    for layer in range(layers):
        for sample in range(samples):
            label = -log_p[layer, sample, targets[sample]].item()
            pairs = zip(soft[-1, sample].tolist(), soft[layer, sample].tolist(), strict=True)
            teacher = temperature**2 * sum(p * math.log(p / q) for p, q in pairs)
            loss = label if layer == layers - 1 else (1 - alpha) * label + alpha * teacher
            total += weights[layer] * loss / samples
    return total


@HEADS
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (1.0, 1.0), (0.2, 4.0)])
def test_distilled_loss_against_its_formula(
    make: type[Head], alpha: float, temperature: float, features: Tensor, targets: Tensor
) -> None:
    head = make(Plain())
    loss = Distilled(WEIGHTS, alpha, temperature)(read(head, features, targets))
    expected = distilled_by_hand(head.logits(features, range(3)), targets, WEIGHTS, alpha, temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    plain = Aligned(WEIGHTS)(read(head, features, targets)).item()
    assert abs(plain - expected) > 0.01, "the control: the aligned loss is another"
    nothing = Distilled(WEIGHTS, 0.0, temperature)(read(head, features, targets))
    assert nothing.item() == pytest.approx(plain, abs=1e-6)
    losses = head(features, targets, range(3)).losses
    evaluated = Distilled(WEIGHTS, alpha, temperature)(read(head, features, targets, known_losses=losses))
    assert evaluated.item() == pytest.approx(plain, abs=1e-6), "evaluation reports the aligned loss"


@HEADS
def test_a_label_that_is_no_class_is_an_error_beside_a_teacher(
    make: type[Head], features: Tensor, targets: Tensor
) -> None:
    wrong = targets.clone()
    wrong[2] = -100  # which torch's own cross-entropy takes for a sample of no loss
    assert Distilled(WEIGHTS)(read(make(Plain()), features, targets)) > 0
    with pytest.raises((IndexError, RuntimeError)):
        Distilled(WEIGHTS)(read(make(Plain()), features, wrong))


def test_gradients_of_the_divergence_are_the_difference_of_the_probabilities() -> None:
    """d/dz τ² KL = τ (p(z) − p(teacher)) / N below the last layer, and nothing at the last, which teaches."""
    logits = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    said(logits).divergences(2.5).sum().backward()
    soft = (logits.detach() / 2.5).softmax(-1)
    torch.testing.assert_close(logits.grad, 2.5 * (soft - soft[-1]) / 7)
    assert logits.grad[-1].abs().max() < 1e-15 < logits.grad[0].abs().max()


def test_the_teacher_learns_from_its_labels_alone(features: Tensor, targets: Tensor) -> None:
    head = SharedHead(Plain())
    leaf, alone = features.clone().requires_grad_(), features.clone().requires_grad_()
    Distilled(WEIGHTS, 0.7, 2.0)(read(head, leaf, targets)).backward()
    Aligned(WEIGHTS)(read(head, alone, targets)).backward()
    torch.testing.assert_close(leaf.grad[-1], alone.grad[-1])
    assert not torch.allclose(leaf.grad[0], alone.grad[0], rtol=0.1)


def test_layers_that_agree_with_the_last_have_nothing_to_learn_from_it() -> None:
    logits = torch.randn(1, 7, 5).repeat(3, 1, 1)
    assert said(logits).divergences(3.0).tolist() == pytest.approx([0.0] * 3, abs=1e-6)


@HEADS
def test_divergences_in_chunks_are_those_of_the_table(
    make: type[Head], features: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two samples at a time, and a ragged last chunk; the table of all logits is never asked for."""

    def gradients() -> list[Tensor | None]:
        torch.manual_seed(0)
        head, leaf = make(Plain()), features.clone().requires_grad_()
        value = KLToLast()(read(head, leaf, targets)) + Distilled(WEIGHTS)(read(head, leaf, targets))
        value.backward()
        return [value.detach(), leaf.grad, *(parameter.grad for parameter in head.parameters())]

    whole = gradients()
    monkeypatch.setattr(reading, "CHUNK_LOGITS", 2 * 3 * 5)
    monkeypatch.delattr(Reading, "logits")
    for chunked, table in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(chunked, table)


def test_the_lenss_loss_is_its_formula_whatever_the_targets_are(features: Tensor, targets: Tensor) -> None:
    """Σ KL(p(L) ‖ p(l)) / (L − 1) over l < L, in float64, in training and in evaluation."""
    head = SharedHead(Plain()).double()
    log_p = head.logits(features.double(), range(3)).log_softmax(-1).detach()
    expected = sum((log_p[2].exp() * (log_p[2] - log_p[at])).sum(-1).mean() for at in range(2)) / 2
    assert expected > 0.1
    for losses in ({}, {"known_losses": torch.ones(3)}):
        for labels in (targets, targets.flip(0)):
            found = KLToLast()(read(head, features.double(), labels, **losses))
            assert found.item() == pytest.approx(float(expected), abs=1e-12)
    with pytest.raises(UserError, match="layers below the last, but the model has one"):
        KLToLast().build(1)


def said(logits: Tensor) -> Reading:
    """A reading of (3, 7, 5) logits."""
    head = SimpleNamespace(num_classes=5, logits=lambda features, _: features)
    return Reading(head, logits, torch.zeros(7, dtype=torch.long), [0, 1, 2], 3)


class Losses(Callback):
    """Of every training step, and of every validation."""

    def __init__(self) -> None:
        self.trained, self.measured = 0.0, list[float]()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.trained += float(outputs["loss"])

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.measured.append(float(outputs.loss))


@pytest.mark.parametrize(
    ("objective", "head", "trained", "first", "second"),
    [
        (Aligned(), SharedHead, 9.2412432, 2.3152139, 2.3259592),
        (Aligned(), SeparateHeads, 9.2247491, 2.3048239, 2.3118420),
        (Aligned("uniform"), SharedHead, 9.2420455, 2.3149097, 2.3258576),
        (Aligned([0.5, 0.0, 0.5]), SharedHead, 9.2424179, 2.3145852, 2.3255720),
        (Aligned(sampled_layers=1), SharedHead, 9.2407427, 2.3153758, 2.3259044),
        (Aligned(sampled_layers=1), SeparateHeads, 9.2244607, 2.3063285, 2.3130562),
        (LastLayer(), SharedHead, 9.2403671, 2.3154771, 2.3258436),
        (Alternating(), SharedHead, 9.2397398, 2.3152797, 2.3258545),
        (Alternating(counts="micro-batches"), SharedHead, 9.2411412, 2.3149285, 2.3257480),
        (Alternating(counts="micro-batches"), SeparateHeads, 9.2354726, 2.3104289, 2.3151159),
        (CosineRegularized(beta=0.7), SharedHead, 9.3092642, 2.3313015, 2.3316796),
        (Distilled(alpha=0.3, temperature=3.0), SharedHead, 7.8533507, 2.3103642, 2.3219206),
        (Distilled(alpha=0.3, temperature=3.0), SeparateHeads, 7.8462604, 2.3040850, 2.3102717),
        (Mixed(0.5), SharedHead, 9.2404288, 2.3151491, 2.3259134),
        (Progressive("last", "linear", 0.7), SharedHead, 9.2401958, 2.3151932, 2.3258963),
    ],
)
def test_trainings_give_the_numbers_they_gave(
    objective: Objective,
    head: type[Head],
    trained: float,
    first: float,
    second: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two epochs of four micro-batches: the sum of the training losses (eight, of half a step each), and `val/loss`, as
    they were computed by the version before objectives were losses of what is read (on the same CPU equal to the bit).
    """
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    torch.manual_seed(0)
    module = tiny.module(objective=objective, head=head, optimizer=partial(torch.optim.SGD, lr=0.3))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=2,
        limit_train_batches=4,
        limit_val_batches=1,
        accumulate_grad_batches=2,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        callbacks=[losses := Losses()],
        **quiet,
    ).fit(module, tiny.digits())
    assert losses.trained == pytest.approx(trained, abs=1e-5)
    assert losses.measured == pytest.approx([first, second], abs=1e-5)
