"""Full precision, however a recipe switched on less, and what was switched on afterwards."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.backends import cuda, mkldnn

from layersim.errors import UserError
from layersim.precision import full_precision, refuse_mps

CPU = torch.device("cpu")


def set_everywhere(precision: str) -> None:
    torch.backends.fp32_precision = precision


def set_tf32(allowed: bool) -> None:
    cuda.matmul.allow_tf32 = allowed


def set_cuda(precision: str) -> None:
    cuda.matmul.fp32_precision = precision


def set_mkldnn(precision: str) -> None:
    mkldnn.matmul.fp32_precision = precision


SWITCHES: dict[str, Callable[[], None]] = {
    "untouched": lambda: None,
    "older: high": lambda: torch.set_float32_matmul_precision("high"),
    "older: medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older: allow_tf32": lambda: set_tf32(True),
    "everywhere": lambda: set_everywhere("tf32"),
    "cuda": lambda: set_cuda("tf32"),
    "mkldnn": lambda: set_mkldnn("bf16"),
    "mixed": lambda: (torch.set_float32_matmul_precision("high"), set_cuda("ieee"))[1],
}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    generic, allowed = torch.backends.fp32_precision, (cuda.matmul.fp32_precision, mkldnn.matmul.fp32_precision)
    yield
    torch.set_float32_matmul_precision("highest")
    set_everywhere(generic)
    cuda.matmul.fp32_precision, mkldnn.matmul.fp32_precision = allowed


def told(ask: Callable[[], object]) -> object:
    """The setting, or what torch says of settings that contradict each other."""
    try:
        return ask()
    except RuntimeError as error:
        return str(error).splitlines()[0]


def settings() -> list[object]:
    asked: list[Callable[[], object]] = [
        lambda: cuda.matmul.fp32_precision,
        lambda: mkldnn.matmul.fp32_precision,
        lambda: torch.backends.fp32_precision,
        torch.get_float32_matmul_precision,
        lambda: cuda.matmul.allow_tf32,
    ]
    return [told(ask) for ask in asked]


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES.keys())
def test_products_are_full_within_and_as_before_behind(switch: Callable[[], None]) -> None:
    switch()
    before = settings()
    with full_precision(CPU):
        within = settings()
    assert within == ["ieee", "ieee", before[2], "highest", False]
    assert settings() == before


def test_the_present_switch_makes_products_rough() -> None:
    """What is switched on changes a product here, and full_precision takes that back: where the processor can."""
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    set_mkldnn("ieee")
    exact = a @ b
    set_mkldnn("bf16")
    with full_precision(CPU):
        assert torch.equal(a @ b, exact)


def test_also_after_an_error() -> None:
    set_cuda("tf32")
    before = settings()
    with pytest.raises(ZeroDivisionError), full_precision(CPU):
        _ = 1 / 0
    assert settings() == before


def test_apples_gpu_is_refused() -> None:
    refuse_mps(CPU)
    with pytest.raises(UserError, match=r"no float64, in which layersim sums: set --trainer\.accelerator=cpu"):
        refuse_mps(torch.device("mps"))
