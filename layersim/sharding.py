"""A model whose parameters are spread over processes: torch's `fully_shard` (FSDP2) under Lightning's
ModelParallelStrategy, which makes the processes, saves, and loads."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from layersim.backbones.base import Backbone
from layersim.errors import UserError, as_user_error
from layersim.evaluation import reduced

if TYPE_CHECKING:
    from layersim.module import LayerwiseModule


def shard(module: "LayerwiseModule", mesh: DeviceMesh) -> None:
    """Spreads the parameters over the mesh's data-parallel processes, in place; once.

    Each block is a group, gathered when it runs, forwards and backwards. So are token embeddings that nothing else
    reads. All else, the head and what the objective learns among it, is the module's own group: it is gathered when
    `forward` or `loss_of` begins, and stays whole until its gradients are summed. So the head's weights may be read
    anywhere in there, at every layer, and are gathered once a step.

    Raises:
        UserError: a mesh for tensor parallelism; a backbone that does not tell its blocks; a model that torch refuses.
    """
    if isinstance(module, FSDPModule):
        return
    processes, parts = mesh.size(), mesh.size(1)
    if parts > 1:
        raise UserError(
            f"Each process reads samples of its own here, but the strategy splits tensors over {parts} of them. Set "
            f"--trainer.strategy.init_args.data_parallel_size={processes} and tensor_parallel_size=1."
        )
    samples = mesh["data_parallel"]
    with as_user_error("torch cannot shard this model", "Choose --trainer.strategy=ddp."):
        for part in _parts(module.backbone):
            fully_shard(part, mesh=samples)
        fully_shard(module, mesh=samples)
    register_fsdp_forward_method(module, "loss_of")
    rank_zero_info(f"Parameters, gradients and the optimizer's state are spread over {processes} processes.")


def refuse_other_sharding(strategy: object) -> None:
    """Refuses a strategy that spreads parameters in another way, in which a head cannot be read at every layer.

    Args:
        strategy: the trainer's, its name, or a recipe's `class_path` and `init_args`.

    Raises:
        UserError: torch's first FSDP, or DeepSpeed's stage 3.
    """
    path = getattr(strategy, "class_path", type(strategy).__name__)
    name = strategy if isinstance(strategy, str) else str(path)
    options = getattr(strategy, "init_args", None) or {}
    stage_3 = "stage_3" in name or getattr(strategy, "zero_stage_3", options.get("stage") == 3)
    if name.startswith("fsdp") or name.endswith("FSDPStrategy") or ("deepspeed" in name.lower() and stage_3):
        raise UserError(
            f"{name} spreads parameters so that one head cannot be read at every layer. Set "
            "--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy."
        )


def _parts(backbone: Backbone) -> Iterator[nn.Module]:
    """The modules that are gathered on their own: blocks, and an embedding whose weights have no second use."""
    yield from backbone.blocks
    embedding = getattr(backbone.model, "get_input_embeddings", lambda: None)()
    uses = Counter(parameter for _, parameter in backbone.named_parameters(remove_duplicate=False))
    if embedding is not None and all(uses[parameter] == 1 for parameter in embedding.parameters()):
        yield embedding


def run_with_the_others(module: "LayerwiseModule", batch: dict[str, Any]) -> None:
    """At the end of each batch of an evaluation: behind its last a process runs a sharded model, for nothing, as often
    as others have batches left, since they gather its parts from all processes."""
    if not isinstance(module, FSDPModule):
        return
    trainer = module.trainer
    loop: Any = trainer.predict_loop if trainer.predicting else trainer._evaluation_loop
    done = torch.tensor(int(loop.batch_progress.is_last_batch), device=module.device)
    read = {key: value for key, value in batch.items() if key != "label" or not trainer.predicting}
    while not reduced(done, "min") and done:
        module(read)  # all of it: torch gathers in the backward of the next step by what forwards have gathered
