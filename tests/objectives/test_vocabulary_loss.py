"""The weighted cross-entropy of many layers in chunks, against the plain formula with stored logits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from layersim.errors import UserError
from layersim.objectives import vocabulary_loss
from layersim.objectives.vocabulary_loss import layered_cross_entropy

LAYERS, SAMPLES, WIDTH, CLASSES = 3, 21, 8, 50
WEIGHTS = [0.2, 0.3, 0.5]
ROW = CLASSES
"""Logits of one row: the unit of `chunk_logits`."""


def plain(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    layer_weights: Sequence[float] | Tensor,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The formula as it is written, all logits stored, in the dtypes that torch chooses."""
    losses = torch.stack(
        [cross_entropy(linear(layer, weight, bias), targets, label_smoothing=label_smoothing) for layer in hidden]
    )
    weights = layer_weights if isinstance(layer_weights, Tensor) else losses.new_tensor(layer_weights)
    return losses @ weights.to(losses.dtype), losses


def operands(dtype: torch.dtype = torch.float32, samples: int = SAMPLES) -> list[Tensor]:
    """Leaves hidden, weight, bias: the same numbers in every dtype that holds bfloat16's."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(LAYERS, samples, WIDTH), (CLASSES, WIDTH), (CLASSES,)]
    drawn = [torch.randn(shape, generator=generator).bfloat16().to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


@pytest.fixture
def targets() -> Tensor:
    return torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(1))


def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    return [gradient.double() for gradient in torch.autograd.grad(loss, leaves)]


def error(values: Tensor, reference: Tensor) -> float:
    """Largest deviation, relative to the largest entry."""
    return float((values.detach().double() - reference.detach()).abs().max() / reference.detach().abs().max())


@pytest.mark.parametrize("rows", [1, 4, 7, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("biased", [True, False])
def test_value_and_gradients_are_the_plain_formulas(targets: Tensor, rows: int, smoothing: float, biased: bool) -> None:
    *leaves, bias = operands()
    *wide, wide_bias = operands(torch.float64)
    if biased:
        leaves, wide = [*leaves, bias], [*wide, wide_bias]
    expected, expected_losses = plain(
        *wide[:2], wide_bias if biased else None, targets, WEIGHTS, label_smoothing=smoothing
    )
    loss, losses = layered_cross_entropy(
        *leaves[:2],
        bias if biased else None,
        targets,
        WEIGHTS,
        label_smoothing=smoothing,
        chunk_logits=rows * ROW,
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=1e-6, atol=0)
    for gradient, reference in zip(gradients(loss, leaves), gradients(expected, wide), strict=True):
        assert error(gradient, reference) < 1e-6


def test_the_comparison_can_fail(targets: Tensor) -> None:
    leaves = operands()
    loss, _ = layered_cross_entropy(*leaves, targets, WEIGHTS)
    other, _ = plain(*leaves, targets, [0.3, 0.2, 0.5])
    assert all(
        error(one, two) > 1e-2 for one, two in zip(gradients(loss, leaves), gradients(other, leaves), strict=True)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_by_finite_differences(targets: Tensor, smoothing: float) -> None:
    def loss(*leaves: Tensor) -> Tensor:
        return layered_cross_entropy(*leaves, targets, WEIGHTS, label_smoothing=smoothing, chunk_logits=5 * ROW)[0]

    leaves = operands(torch.float64)
    assert torch.autograd.gradcheck(loss, leaves, rtol=1e-6, atol=1e-8, fast_mode=True)


def test_float64_is_kept_throughout(targets: Tensor) -> None:
    leaves = operands(torch.float64)
    found, expected = (of(*leaves, targets, WEIGHTS)[0] for of in (layered_cross_entropy, plain))
    assert found.dtype == torch.float64
    for gradient, reference in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        assert error(gradient, reference) < 1e-14


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "parameters"])
def test_bfloat16_is_as_near_the_truth_as_the_plain_formula(autocast: bool) -> None:
    targets = torch.randint(CLASSES, (512,), generator=torch.Generator().manual_seed(1))
    dtype = torch.float32 if autocast else torch.bfloat16
    leaves, wide = operands(dtype, samples=512), operands(torch.float64, samples=512)
    truth, true_losses = plain(*wide, targets, WEIGHTS)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, losses = layered_cross_entropy(*leaves, targets, WEIGHTS, chunk_logits=100 * ROW)
        theirs, _ = plain(*leaves, targets, WEIGHTS)
    assert losses.dtype == torch.float32
    assert error(losses, true_losses) < 1e-3  # bfloat16 itself carries 4e-3: logits' errors average out
    loss.backward()
    ours = [leaf.grad for leaf in leaves]
    assert [gradient.dtype for gradient in ours if gradient is not None] == [dtype] * 3
    both = zip(ours, gradients(theirs, leaves), gradients(truth, wide), strict=True)
    for gradient, their_gradient, reference in both:
        assert gradient is not None
        assert error(gradient, reference) < max(4e-3, 1.1 * error(their_gradient, reference))


def test_autocast_multiplies_in_its_dtype(targets: Tensor) -> None:
    exact = layered_cross_entropy(*operands(), targets, WEIGHTS)[1]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layered_cross_entropy(*operands(), targets, WEIGHTS)[1]
        double = layered_cross_entropy(*operands(torch.float64), targets, WEIGHTS)[1]
    assert 1e-5 < error(rounded, exact.double()) < 1e-2
    assert error(double, exact.double()) < 1e-6  # which autocast leaves alone, as torch does


def test_half_precision_does_not_lose_small_weights(targets: Tensor) -> None:
    """The plain formula rounds λ / n · (p − y) to float16, whose smallest is 6e-8; ours applies λ and n after."""
    weights = [1e-7, 0.4, 0.6]
    leaves, wide = operands(), operands(torch.float64)
    with torch.autocast("cpu", torch.float16):
        loss, theirs = layered_cross_entropy(*leaves, targets, weights)[0], plain(*leaves, targets, weights)[0]
    reference = gradients(plain(*wide, targets, weights)[0], wide)[0]
    assert error(gradients(loss, leaves)[0][0], reference[0]) < 2e-3
    assert error(gradients(theirs, leaves)[0][0], reference[0]) > 0.5


def test_the_outer_gradient_scales_and_accumulates(targets: Tensor) -> None:
    """Two uses in a step, each with a factor of its own, as with a loss scale, accumulation, or a share of samples."""
    results = []
    for of in (layered_cross_entropy, plain):
        leaves = operands()
        first, _ = of(*leaves, targets, WEIGHTS)
        second, _ = of(*leaves, targets.flip(0), [0.0, 0.0, 1.0])
        (1024 * first).backward()
        ((first.detach() * second) / 3).backward()
        results.append([leaf.grad for leaf in leaves])
    for gradient, reference in zip(*results, strict=True):
        assert gradient is not None
        assert reference is not None
        assert error(gradient, reference.double()) < 1e-6


def test_one_weight_as_embedding_and_classifier(targets: Tensor) -> None:
    tokens = torch.arange(SAMPLES)
    results = []
    for of in (layered_cross_entropy, plain):
        _, weight, _ = operands()
        embedded = nn.functional.embedding(tokens, weight)
        loss, _ = of(torch.stack([embedded, embedded.sin(), embedded.cos()]), weight, None, targets, WEIGHTS)
        results += gradients(loss, [weight])
    assert error(*results) < 1e-6


def test_a_retained_graph_gives_the_same_gradients_twice(targets: Tensor) -> None:
    leaves = operands()
    loss, _ = layered_cross_entropy(*leaves, targets, WEIGHTS)
    (2 * loss).backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
    loss.backward()
    for gradient, leaf in zip(once, leaves, strict=True):
        torch.testing.assert_close(leaf.grad, 1.5 * gradient)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_gradients_of_losses_whose_weights_come_later(targets: Tensor, autocast: torch.dtype | None) -> None:
    """Through the losses themselves, and through a sum of learned weights, both under a loss scale of 2¹⁶, whose
    product with features would overflow float16."""

    def found(of: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves, learned = operands(dtype), torch.tensor(WEIGHTS, dtype=dtype, requires_grad=True)
        chosen = torch.tensor([0.6, 0.0, 0.4])
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None and dtype == torch.float32):
            later = (of(*leaves, targets, None if of is layered_cross_entropy else WEIGHTS)[1] * chosen).sum()
            known = of(*leaves, targets, learned)[0]
        return [*gradients(2**16 * later, leaves), *gradients(2**16 * known, [*leaves, learned])]

    for ours, reference in zip(found(layered_cross_entropy, torch.float32), found(plain, torch.float64), strict=True):
        assert error(ours, reference) < (1e-6 if autocast is None else 2e-2)


def test_losses_are_differentiated_beside_their_sum(targets: Tensor) -> None:
    ours, theirs = operands(), operands(torch.float64)
    (total, losses), (expected, each) = layered_cross_entropy(*ours, targets, WEIGHTS), plain(*theirs, targets, WEIGHTS)
    for gradient, reference in zip(
        gradients(3 * total + losses[0], ours), gradients(3 * expected + each[0], theirs), strict=True
    ):
        assert error(gradient, reference) < 1e-6
    with Work() as work:
        layered_cross_entropy(*ours, targets, None)[1].max().backward()
    assert work.products == 3 + 9, "logits, and logits and gradients of the second pass"


def test_gradients_of_gradients_are_refused(targets: Tensor) -> None:
    leaves = operands()
    loss, _ = layered_cross_entropy(*leaves, targets, WEIGHTS)
    with pytest.raises(UserError, match=r"no second derivative.* create_graph"):
        torch.autograd.grad(loss, leaves, create_graph=True)


class Work(TorchDispatchMode):
    """Counts products of matrices, and looks at the size of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.largest = 0
        self.weight_sized: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        if isinstance(made, Tensor):
            self.largest = max(self.largest, made.untyped_storage().nbytes())
            if made.shape == (CLASSES, WIDTH):
                self.weight_sized.add(made.untyped_storage().data_ptr())
        return made


def test_logits_live_for_a_chunk_and_the_weight_has_one_gradient(targets: Tensor) -> None:
    leaves = operands()
    own = max(leaf.untyped_storage().nbytes() for leaf in leaves)
    with Work() as ours:
        layered_cross_entropy(*leaves, targets, WEIGHTS, chunk_logits=7 * ROW)[0].backward()
    assert ours.largest == max(own, 7 * ROW * 4)
    assert len(ours.weight_sized - {leaves[1].data_ptr()}) == 1
    with Work() as theirs:
        plain(*operands(), targets, WEIGHTS)[0].backward()
    assert theirs.largest == SAMPLES * ROW * 4 > ours.largest
    assert len(theirs.weight_sized) > 2


@pytest.mark.parametrize(
    ("frozen", "weights", "products"),
    [
        ((), WEIGHTS, 9),  # for every layer its logits, and the gradients of hidden and weight
        ((), [0.0, 0.5, 0.5], 7),
        ((), [0.0, 0.0, 1.0], 5),
        ((1,), WEIGHTS, 6),
        ((0,), WEIGHTS, 6),
        ((0, 1), WEIGHTS, 3),
        ((0, 1, 2), WEIGHTS, 3),
    ],
)
def test_only_what_is_needed_is_computed(
    targets: Tensor, frozen: tuple[int, ...], weights: list[float], products: int
) -> None:
    leaves = operands()
    for number in frozen:
        leaves[number].requires_grad_(False)
    with Work() as work:
        loss, losses = layered_cross_entropy(*leaves, targets, weights)
    assert work.products == products
    torch.testing.assert_close(losses, plain(*leaves, targets, weights)[1])
    live = [leaf for leaf in leaves if leaf.requires_grad]
    if live:
        reference = gradients(plain(*leaves, targets, weights)[0], live)
        assert all(error(one, two) < 1e-6 for one, two in zip(gradients(loss, live), reference, strict=True))
    with Work() as work, torch.no_grad():
        loss, _ = layered_cross_entropy(*leaves, targets, weights)
    assert work.products == LAYERS
    assert not loss.requires_grad


def test_products_in_half_precision_are_summed_by_slabs() -> None:
    """More classes than a slab holds."""
    generator = torch.Generator().manual_seed(0)
    errors, inputs = (torch.randn(6, size, generator=generator).bfloat16() for size in (5000, 4))
    total = torch.ones(5000, 4)
    vocabulary_loss._add_product(total, errors, inputs, 0.5)
    torch.testing.assert_close(total, 1 + 0.5 * (errors.float().T @ inputs.float()), rtol=0, atol=2e-2)


class Tied(nn.Module):
    """A language model of two "layers" whose embedding is its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        with torch.no_grad():
            self.embedding.weight.copy_(operands()[1])

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.embedding(tokens)
        hidden = torch.stack([embedded.sin(), embedded])
        return layered_cross_entropy(hidden, self.embedding.weight, None, tokens.roll(-1), [0.4, 0.6])[0]


def train_a_step(rank: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(Tied())
    tokens = torch.arange(2 * SAMPLES).view(2, SAMPLES)[rank]
    with model.no_sync():  # an accumulated micro-batch before the one that synchronises
        model(tokens).backward()
    model(tokens).backward()
    torch.save(model.module.embedding.weight.grad, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_gradient_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(train_a_step, args=(str(tmp_path),), nprocs=2, start_method="fork")
    model = Tied()
    for tokens in torch.arange(2 * SAMPLES).view(2, SAMPLES):
        model(tokens).backward()  # the mean of two processes, of two equal micro-batches each
    expected = model.embedding.weight.grad
    assert expected is not None
    for rank in range(2):
        assert error(torch.load(tmp_path / f"{rank}.pt"), expected.double()) < 1e-6
