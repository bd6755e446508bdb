"""FeatureTap looks through DDP and sees what compiled code computes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from layersim import FeatureTap, UserError
from tests.tapping.chain import Chain, inputs


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_ddp_is_seen_through() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Chain()  # the user's own name, which stays

        def forward(self, x: Tensor) -> Any:
            return self.module(x)

    model, x = DistributedDataParallel(Outer()), inputs()
    with FeatureTap(model, "module.blocks.*") as tap:
        expected = model(x)
    assert torch.equal(tap.take(), torch.stack(expected))
    with pytest.raises(UserError, match=r'matches "module.module.blocks.\*"'):
        FeatureTap(model, "module.module.blocks.*")


class Counting:
    """A compiler's backend that counts how often compiled code runs."""

    runs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: Any) -> Any:
        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


def compiled(model: Chain, how: str, backend: Counting) -> Any:
    """The model, compiled in one of the ways that there are."""
    if how == "as a whole":
        return torch.compile(model, backend=backend)
    if how == "its forward":
        return torch.compile(model.forward, backend=backend)
    for number, block in enumerate(model.blocks if "blocks" in how else [model]):
        if "in place" in how:
            block.compile(backend=backend)
        else:
            model.blocks[number] = torch.compile(block, backend=backend)  # type: ignore[assignment]
    return model


@torch.no_grad()
@pytest.mark.parametrize("how", ["as a whole", "its forward", "in place", "blocks", "blocks in place"])
def test_compiled_models_are_tapped_and_compiled_again_afterwards(how: str) -> None:
    torch._dynamo.reset()
    model, x, backend = Chain(), inputs(), Counting()
    expected = torch.stack(model(x))
    call = compiled(model, how, backend)
    call(x)
    before = backend.runs
    assert before > 0
    seen: list[int] = []
    handle = model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    call(x)
    assert bool(seen) == ("blocks" in how), "a hook alone is passed over where compiled code calls the block"
    handle.remove()
    before = backend.runs
    target = call if isinstance(call, nn.Module) else model
    with FeatureTap(target, "blocks.*") as first:
        second = FeatureTap(target, "blocks.*").open()
        call(x)
    assert torch.equal(first.take(), expected)
    assert torch.equal(second.take(), expected)
    call(x)
    assert torch.equal(second.take(), expected), "the second is still open"
    second.close()
    assert backend.runs == before
    call(x)
    assert backend.runs > before
