"""`--trainer.deterministic=true` twice is the same to the last bit, with dropout and loader workers."""

from pathlib import Path

import pytest
import torch

from layersim.__main__ import main
from tests.measured import measured
from tests.tiny import FLAGS

DROPOUT = "--model.backbone.model_args={patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2, proj_drop_rate: 0.2}"


@pytest.fixture
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    return monkeypatch


@pytest.mark.usefixtures("_as_it_was")
def test_a_run_twice_is_bitwise_equal(tmp_path: Path) -> None:
    ends = []
    try:
        for name, seed in (("one", 3), ("two", 3), ("other", 4)):
            words = [
                "fit",
                *FLAGS,
                DROPOUT,
                "--trainer.limit_val_batches=1",
                "--data.num_workers=1",
                "--trainer.deterministic=true",
            ]
            words += [f"--seed_everything={seed}", "--trainer.limit_train_batches=4", f"--experiment={name}"]
            assert main([*words, f"--trainer.default_root_dir={tmp_path}"]) == 0
            (directory,) = (tmp_path / name).iterdir()
            weights = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            ends.append((weights, [line["quantities"] for line in measured(directory)]))
    finally:
        torch.use_deterministic_algorithms(False)
    (one, told), (two, told_again), (other, _) = ends
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert told == told_again
    assert not all(torch.equal(one[name], other[name]) for name in one), "the control: another seed"
