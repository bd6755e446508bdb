"""Two real processes against one: unequal shares, any share of the samples, and a process that never sees a batch."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from layersim.errors import UserError
from layersim.similarity import (
    RSA,
    AngularDistance,
    CosineSimilarity,
    LinearCKA,
    MeanCCA,
    MutualKNN,
    RegressionR2,
    StreamedCKA,
    cosine,
    linear_cka,
)
from layersim.similarity.measure import Measure
from layersim.similarity.positions import splitmix64

from .references import related_layers

SAMPLES = 77
SHARES = {
    "contiguous": [torch.arange(45), torch.arange(45, SAMPLES)],
    "taking turns": [torch.arange(0, SAMPLES, 2), torch.arange(1, SAMPLES, 2)],
    "second has nothing": [torch.arange(SAMPLES), torch.arange(0)],
}


def metrics() -> dict[str, Measure]:
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
        if metric.keeps_sample or "minibatch" in name:
            metric.expect_null(39, 5)
        for index in share.split(batch) if len(share) else ():
            metric.update(features[:, index], index, other=other[:, index] if "two models" in name else None)
        interval = metric.interval()
        assert torch.equal(interval.value, metric.compute())
        parts = [interval.value, interval.low, interval.high]
        if metric.keeps_sample or "minibatch" in name:
            null = metric.null(39, 5)
            parts += [null.p, null.p_family, null.calibrated, null.mean, null.threshold]
        values[name] = torch.stack(parts)
        assert not metric._is_synced  # states are a process's own again, so that it may go on
    return values


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*method of metric .* was called before")  # by the process that has nothing
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    values = {name: compute(shares[rank], batch=13) for name, shares in SHARES.items()}
    for name, shares in SHARES.items():
        streamed = StreamedCKA()
        for index in shares[rank].split(13) if len(shares[rank]) else ():
            streamed.update(related_layers(SAMPLES, 12)[:, index] + 50, index)
        constant = StreamedCKA()
        if len(shares[rank]):
            constant.update(torch.full((2, len(shares[rank]), 3), 0.1), shares[rank])
        with pytest.warns(UserWarning, match="NaN for layer 1, 2"):
            assert constant.compute().isnan().all()
        values[name]["streamed"] = streamed.compute()
        values[name]["streamed again"] = streamed.compute()
    numbers_itself = LinearCKA(batch_size=20)
    numbers_itself.update(related_layers(SAMPLES, 12)[:, SHARES["contiguous"][rank]])
    values["no positions"] = {"minibatch": numbers_itself.compute()}
    twice = LinearCKA(batch_size=16)
    twice.update(related_layers(32, 12), torch.arange(32))
    with pytest.raises(UserError, match="position 0 came more than once"):
        twice.compute()
    capped = RSA(max_samples=20)
    capped.update(related_layers(SAMPLES, 12)[:, SHARES["contiguous"][rank]], SHARES["contiguous"][rank])
    capped.sync(dist_sync_fn=capped.dist_sync_fn)
    values["gathered"] = {"index": torch.cat(capped.index)}
    capped.unsync()
    alone = CosineSimilarity(centering="none")
    if rank == 0:
        alone.update(related_layers(1, 12))
    with pytest.raises(UserError, match="got 1 samples in 1"):
        alone.interval()
    values["after an error"] = {"cosine": alone.compute()}  # not still joined to the other process's state
    torch.save(values, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    mp.start_processes(process, args=(str(folder),), nprocs=2, start_method="fork")  # no second import of torch
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    return compute(torch.arange(SAMPLES), batch=31)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", metrics())
def test_two_processes_equal_one(
    both: list[dict[str, dict[str, torch.Tensor]]], alone: dict[str, torch.Tensor], share: str, name: str
) -> None:
    for rank in (0, 1):
        torch.testing.assert_close(both[rank][share][name], alone[name], rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("share", SHARES)
def test_sums_of_two_processes_add(both: list[dict[str, dict[str, torch.Tensor]]], share: str) -> None:
    """About whatever origins they were, far from zero, and where one process has none."""
    expected = linear_cka(related_layers(SAMPLES, 12).double(), estimator="debiased")
    for values in both:
        torch.testing.assert_close(values[share]["streamed"], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(values[share]["streamed again"], expected, rtol=0, atol=1e-6)


def test_only_samples_that_are_kept_travel(both: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    chosen = splitmix64(torch.arange(SAMPLES)).argsort()[:20].sort().values
    for rank in (0, 1):
        assert both[rank]["gathered"]["index"].sort().values.tolist() == chosen.tolist()


def test_an_interval_that_cannot_be_had_leaves_the_metric_as_it_was(
    both: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    for rank in (0, 1):
        expected = cosine(related_layers(1, 12), centering="none")
        torch.testing.assert_close(both[rank]["after an error"]["cosine"], expected, rtol=0, atol=1e-12)


def test_without_positions_each_process_makes_its_own_groups(
    both: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    features, (first, second) = related_layers(SAMPLES, 12), SHARES["contiguous"]
    expected = LinearCKA(batch_size=20)
    expected.update(features[:, first], first)
    expected.update(features[:, second], second - 45 + 100)
    for rank in (0, 1):
        torch.testing.assert_close(both[rank]["no positions"]["minibatch"], expected.compute(), rtol=0, atol=1e-12)
