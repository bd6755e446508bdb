"""Lightning's finders of the batch size and the learning rate: what they find is used, told and recorded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from layersim.errors import UserError
from layersim.optimization.schedules import WarmupDecay, start_from
from tests import tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches", "ignore:.*clean_tuple_to_list", "ignore:.*does not have many workers"
)
FLAGS = [flag for flag in tiny.FLAGS if "max_epochs" not in flag]
SEEN: dict[str, Any] = {}


class Sees(Callback):
    """What the training really works with."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        SEEN.update(rates=[], batch=trainer.datamodule.batch_size, steps=trainer.num_training_batches)  # type: ignore[attr-defined]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        SEEN["rates"].append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("schedule", [None, "layersim.optimization.schedules.WarmupDecay"])
@pytest.mark.parametrize("finder", ["BatchSizeFinder", "LearningRateFinder"])
def test_what_is_found_is_used_and_recorded(
    finder: str, schedule: str | None, layersim: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    flags = [
        "--model.optimizer=AdamW",
        "--model.optimizer.lr=0.003",
        "--trainer.callbacks+=tests.runs.test_finders.Sees",
    ]
    flags += [f"--trainer.callbacks+={finder}", "--trainer.max_epochs=2"]
    flags += ["--trainer.callbacks.max_trials=4"] if finder == "BatchSizeFinder" else ["--trainer.callbacks.max_lr=1e4"]
    flags += [f"--model.lr_scheduler={schedule}"] if schedule else []
    directory = layersim("fit", *FLAGS, *flags)
    config = yaml.safe_load((directory / "config.yaml").read_text())
    rate, size = config["model"]["optimizer"]["init_args"]["lr"], config["data"]["init_args"]["batch_size"]
    steps = -(-1437 // size)
    assert (SEEN["batch"], SEEN["steps"], len(SEEN["rates"])) == (size, steps, 2 * steps)
    if finder == "BatchSizeFinder":
        assert (size, rate) == (16, 0.003)
        assert "Found, and written to config.yaml: --data.init_args.batch_size=16." in caplog.text
    else:
        assert size == 64
        assert rate != 0.003
        assert f"--model.optimizer.init_args.lr={rate:g}." in caplog.text
    if schedule:
        parameter = torch.nn.Parameter(torch.zeros(1))
        expected = WarmupDecay(torch.optim.AdamW([parameter], lr=rate))
        expected.spread_over(2 * steps)
        assert SEEN["rates"] == pytest.approx([rate * expected.factor(step) for step in range(2 * steps)])
    else:
        assert SEEN["rates"] == [rate] * 2 * steps
    assert finder not in str(config["trainer"]["callbacks"]), "it is not searched for again"
    stored = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["optimizer"]["init_args"]["lr"] == rate
    assert stored["layersim"]["config"]["data"]["init_args"]["batch_size"] == size
    assert not list(directory.rglob(".*.ckpt"))


@pytest.mark.parametrize(
    "make", [lambda made: StepLR(made, 2), lambda made: LambdaLR(made, lambda step: 1 / (step + 1))]
)
def test_a_schedule_that_starts_anew_is_one_that_was_made_so(make: Callable[[Any], Any]) -> None:
    def rates(schedule: Any) -> list[float]:
        found = []
        for _ in range(5):
            found.append(schedule.optimizer.param_groups[0]["lr"])
            schedule.optimizer.step()
            schedule.step()
        return found

    one, other = (make(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)) for rate in (0.5, 0.02))
    start_from(one, [0.02])
    assert rates(one) == pytest.approx(rates(other))


def test_a_schedule_of_rates_of_its_own_leaves_no_place_for_one_that_is_found() -> None:
    made = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    with pytest.raises(UserError, match="OneCycleLR does not start from the optimizer's rate alone"):
        start_from(OneCycleLR(made, max_lr=1.0, total_steps=4), [0.02])
