"""Thresholds for a language model's tokens: what the texts cost, and which threshold is promised."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from layersim.errors import UserError
from layersim.exits import Confidence, Patience, TokenExit, calibrate_tokens, measure_token_speed
from layersim.exits.promises import Bet, Counted
from layersim.heads import SharedHead
from tests.exits.test_generation import P, T, sharp

N = 120
THRESHOLDS = [0.2, 0.4, 0.6, 0.8, 0.95, 1.0]


@pytest.fixture(scope="module")
def exits() -> TokenExit:
    backbone = sharp("Llama")
    return TokenExit(backbone, SharedHead(backbone), Confidence(), None)


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    return torch.randint(3, 50, (N, P + T), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits_behind(exits: TokenExit, whole: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = exits.backbone.model(input_ids=whole).logits
    return logits[:, P - 1 : -1]


def test_disagreement_is_with_the_full_model_behind_the_same_words(exits: TokenExit, texts: torch.Tensor) -> None:
    found = calibrate_tokens(exits, texts[:, :P], texts[:, P:], target=0.5, thresholds=THRESHOLDS, confidence=0.9)

    written = exits.at(found.threshold).generate(texts[:, :P], None, T)
    own = logits_behind(exits, torch.cat([texts[:, :P], written.tokens], dim=1)).argmax(dim=-1)
    assert found.observed_risk == pytest.approx((own != written.tokens).double().mean().item())
    assert 0 < found.observed_risk < found.bound <= 0.5
    assert found.mean_exit_layer == pytest.approx(written.mean_exit_layer())
    assert found.exits == written.exit_layers.flatten().bincount(minlength=3).tolist()
    assert found.layer_gain == pytest.approx(3 / found.mean_exit_layer)


def test_the_loss_is_that_of_what_really_followed(exits: TokenExit, texts: torch.Tensor) -> None:
    options = {"target": 0.9, "risk": "loss", "thresholds": THRESHOLDS, "confidence": 0.9}
    found = calibrate_tokens(exits, texts[:, :P], texts[:, P:], **options)  # type: ignore[arg-type]

    early = exits.at(found.threshold).generate(texts[:, :P], None, T, forced=texts[:, P:]).losses
    assert early is not None
    full = cross_entropy(logits_behind(exits, texts).transpose(1, 2), texts[:, P:], reduction="none")
    expected = (early.mean(dim=1) - full.mean(dim=1)).clamp(-1, 1).mean().item()
    assert found.observed_risk == pytest.approx(expected, abs=1e-4)
    assert found.observed_risk != 0


@pytest.mark.parametrize(("risk", "kind"), [("disagreement", Bet), ("continuation", Counted)])
def test_the_answer_is_the_last_that_kept_the_target(
    exits: TokenExit, texts: torch.Tensor, risk: str, kind: type
) -> None:
    options = {"risk": risk, "thresholds": THRESHOLDS, "confidence": 0.9}
    found = calibrate_tokens(exits, texts[:, :P], texts[:, P:], target=0.4, **options)  # type: ignore[arg-type]

    order = [tried["threshold"] for tried in found.tried]
    assert order == THRESHOLDS[::-1][: len(order)]
    *kept, last = found.tried
    assert all(tried["bound"] <= 0.4 for tried in kept)
    assert last["bound"] > 0.4, "some threshold broke the target"
    assert found.threshold == kept[-1]["threshold"]
    assert found.risk == risk
    full = exits.at(None).generate(texts[:, :P], None, T).tokens
    if kind is Counted:
        early = exits.at(found.threshold).generate(texts[:, :P], None, T).tokens
        ones = (early != full).any(dim=1).double()
        assert found.observed_risk == pytest.approx(ones.mean().item())
        assert found.bound == pytest.approx(Counted(0.4, 0.1).bound(ones))


def test_where_nothing_can_be_promised_all_layers_run(exits: TokenExit, texts: torch.Tensor) -> None:
    options = {"target": 0.05, "thresholds": [0.1, 0.2], "risk": "continuation"}
    found = calibrate_tokens(exits, texts[:, :P], texts[:, P:], **options)  # type: ignore[arg-type]

    assert found.threshold is None
    assert found.observed_risk == 0
    assert found.mean_exit_layer == 3
    assert "every token goes through all layers" in found.explain()


def test_what_promises_nothing_is_refused(exits: TokenExit, texts: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"at least 299 texts .* but got 120"):
        calibrate_tokens(exits, texts[:, :P], texts[:, P:], target=0.01, risk="continuation")
    with pytest.raises(UserError, match="disagreement, loss, continuation, got 'error'"):
        calibrate_tokens(exits, texts[:, :P], texts[:, P:], target=0.5, risk="error")  # type: ignore[arg-type]
    for rows, size in ((N - 1, 32), (2 * N, 32), (N, 0), (N, -1)):
        following = torch.cat([texts, texts])[:rows, P:]
        told = rf"Expected prompts, .* got 120 and \({rows}, {following.shape[1]}\), and batch_size {size}"
        with pytest.raises(UserError, match=told):
            calibrate_tokens(exits, texts[:, :P], following, target=0.5, batch_size=size)
    with pytest.raises(UserError, match=r"\(texts, tokens\) that followed, .* got 120 and \(120,\)"):
        calibrate_tokens(exits, texts[:, :P], texts[:, P], target=0.5, thresholds=[0.5])
    with pytest.raises(UserError, match="each above the one before"):
        calibrate_tokens(exits, texts[:, :P], texts[:, P:], target=0.5, thresholds=[0.5, 0.2])
    with pytest.raises(UserError, match="threshold of"):
        exits.at(7.0)


def test_speed_tells_the_layers_of_what_it_timed(texts: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """And as its gain that of the seconds beside it; under load the rounds' own ratios may have another median."""
    times = iter([9.0, 9.0, 3.0, 1.0, 1.0, 2.0, 2.0, 4.0])  # by turns without exits and with; ratios 3, 1/2, 1/2

    def timed(run: Callable[[Any], object], batches: Sequence[Any], clock: object) -> float:
        for batch in batches:
            run(batch)
        return next(times)

    monkeypatch.setattr("layersim.exits.speed.timed", timed)
    backbone = sharp("Llama")
    early = TokenExit(backbone, SharedHead(backbone), Patience(), 1.0)
    speed = measure_token_speed(early, texts[:4, :P], T, 2, rounds=3)
    assert speed.mean_exit_layer == pytest.approx((3 + (T - 1)) / T)
    assert speed.layer_gain == pytest.approx(3 / speed.mean_exit_layer)
    assert (speed.seconds, speed.full_seconds, speed.wall_gain) == (2 / (4 * T), 2 / (4 * T), 1.0)
