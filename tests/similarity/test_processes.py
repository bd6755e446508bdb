"""Two real processes against one: unequal shares, any share of the samples, and a process that never sees a batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from layersim.similarity import RSA, AngularDistance, CosineSimilarity, LinearCKA, MeanCCA, MutualKNN, RegressionR2
from layersim.similarity.samples import SampleMetric

from .references import related_layers

SAMPLES = 77
SHARES = {
    "contiguous": [torch.arange(45), torch.arange(45, SAMPLES)],
    "taking turns": [torch.arange(0, SAMPLES, 2), torch.arange(1, SAMPLES, 2)],
    "second has nothing": [torch.arange(SAMPLES), torch.arange(0)],
}


def metrics() -> dict[str, SampleMetric]:
    return {
        "cosine none": CosineSimilarity(centering="none"),
        "cosine samples": CosineSimilarity(),
        "cosine capped": CosineSimilarity(max_samples=20),
        "minibatch": LinearCKA(batch_size=16),
        "debiased": LinearCKA(estimator="debiased"),
        "angular": AngularDistance(),
        "mean cca": MeanCCA(),
        "neighbours capped": MutualKNN(k=3, max_samples=20),
        "rsa of two models": RSA(max_samples=20),
        "regression of two models": RegressionR2(),
        "minibatch of two models": LinearCKA(batch_size=16),
        "cosine of two models": CosineSimilarity(centering="none"),
    }


def compute(share: torch.Tensor, batch: int) -> dict[str, torch.Tensor]:
    features, other = related_layers(SAMPLES, 12).bfloat16(), related_layers(SAMPLES, 12, layers=2, seed=1)
    values = {}
    for name, metric in metrics().items():
        for index in share.split(batch) if len(share) else ():
            metric.update(features[:, index], index, other=other[:, index] if "two models" in name else None)
        values[name] = metric.compute()
        assert not metric._is_synced  # states are a process's own again, so that it may go on
    return values


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    values = {name: compute(shares[rank], batch=13) for name, shares in SHARES.items()}
    numbers_itself = LinearCKA(batch_size=20)
    numbers_itself.update(related_layers(SAMPLES, 12)[:, SHARES["contiguous"][rank]])
    values["no positions"] = {"minibatch": numbers_itself.compute()}
    torch.save(values, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(process, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", metrics())
def test_two_processes_equal_one(both: list[dict[str, dict[str, torch.Tensor]]], share: str, name: str) -> None:
    expected = compute(torch.arange(SAMPLES), batch=31)[name]
    for rank in (0, 1):
        torch.testing.assert_close(both[rank][share][name], expected, rtol=0, atol=1e-12)


def test_without_positions_each_process_makes_its_own_groups(
    both: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    features, (first, second) = related_layers(SAMPLES, 12), SHARES["contiguous"]
    expected = LinearCKA(batch_size=20)
    expected.update(features[:, first], first)
    expected.update(features[:, second], second - 45 + 100)
    for rank in (0, 1):
        torch.testing.assert_close(both[rank]["no positions"]["minibatch"], expected.compute(), rtol=0, atol=1e-12)
