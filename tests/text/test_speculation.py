"""Drafts from a layer: the text is plain greedy decoding's, and what is counted is what transformers accepted."""

import bisect
import inspect
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.generation.candidate_generator import EarlyExitCandidateGenerator

from layersim.backbones import TransformersBackbone
from layersim.errors import UserError
from layersim.export import export_stock
from layersim.module import LayerwiseModule
from layersim.objectives import Aligned, LastLayer, Objective
from layersim.text import speculation
from layersim.text.drafting import check_drafting, undisturbed
from layersim.text.generation import generate
from layersim.text.speculation import speculation_by_layer
from tests import tiny
from tests.backbones.tiny_transformers import CAUSAL, ENCODERS, build
from tests.text.test_generation import FAMILIES, L, module, padded, texts

pytestmark = [pytest.mark.filterwarnings("ignore:.*max_new_tokens.*"), pytest.mark.usefixtures("clockless")]

T = 14
FITS = [name for name in FAMILIES if name.split(",")[0] in ("Llama", "Qwen2", "Mistral", "Gemma", "Gemma 2")]
FAILS = {"GPT-2": "gpt2", "GPT-NeoX": "gpt_neox", "OPT": "opt", "OPT, projected, norms behind": "opt"}
TRAINED_LAYERS = 3
TIME = speculation._time
CODE = torch.tensor(list(inspect.getsource(bisect).encode()))


@pytest.fixture
def clockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way takes a second: texts are written to count, and not once more for the clock."""
    monkeypatch.setattr(speculation, "_time", lambda _, __, ways, *___: [[1.0] for _ in ways])


@cache
def trained(family: str, objective: type[Objective]) -> LayerwiseModule:
    """A small model that has learned one module of the standard library by its bytes."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": TRAINED_LAYERS, "hidden_size": 48, "intermediate_size": 96, "head_dim": 24}
    arguments = {**CAUSAL[family], **sizes, "vocab_size": 256, "max_position_embeddings": 128}
    backbone = TransformersBackbone(task="language-modeling", pretrained=False, config_args=arguments)
    model = LayerwiseModule(backbone, objective())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    layers, weights = range(TRAINED_LAYERS), model.objective.weights(TRAINED_LAYERS, None)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        starts = torch.randint(0, len(CODE) - 48, (16,), generator=generator)
        ids = torch.stack([CODE[start : start + 48] for start in starts.tolist()])
        features = backbone({"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": ids})
        assert features.targets is not None
        optimizer.zero_grad()
        model.head.loss(features.values, features.targets, layers, weights).backward()
        optimizer.step()
    return model.eval()


def code(count: int = 3, length: int = 16) -> tuple[Tensor, Tensor]:
    ids = torch.stack([CODE[start : start + length] for start in range(200, 200 + 700 * count, 700)])
    return ids, torch.ones_like(ids)


def still_above(layer: int) -> LayerwiseModule:
    """A Llama whose blocks above a layer add nothing, so that the layer says what the last one says."""
    model = module.__wrapped__("Llama")
    backbone: Any = model.backbone
    for block in backbone.model.model.layers[layer:]:
        nn.init.zeros_(block.self_attn.o_proj.weight)
        nn.init.zeros_(block.mlp.down_proj.weight)
    return model


def plainly(model: Any, row: Sequence[int], tokens: int, **options: Any) -> list[int]:
    ids = torch.tensor([row])
    text = model.generate(ids, attention_mask=ids * 0 + 1, do_sample=False, max_new_tokens=tokens, **options)
    written: list[int] = text[0, len(row) :].tolist()
    return written


def state(model: nn.Module) -> list[Any]:
    stock: Any = model.backbone.model if isinstance(model, LayerwiseModule) else model
    return [
        stock.config.to_dict(),
        stock.generation_config.to_dict(),
        id(stock.generation_config),
        [part.training for part in model.modules()],
        [(len(part._forward_pre_hooks), len(part._forward_hooks)) for part in model.modules()],
        [parameter.clone().tolist() for parameter in list(model.parameters())[:3]],
    ]


@pytest.mark.parametrize("family", FITS)
def test_families_that_fit_write_the_plain_text_from_every_layer(family: str) -> None:
    model = module(family)
    backbone: Any = model.backbone
    before = state(model)
    found = speculation_by_layer(model, *padded(texts()), max_new_tokens=T)
    assert state(model) == before
    assert [drafts.layer for drafts in found.drafts] == [1, 2]
    for drafts in found.drafts:
        written = [plainly(backbone.model, row, T, assistant_early_exit=drafts.layer) for row in texts()]
        assert written == [plainly(backbone.model, row, T) for row in texts()]
        assert drafts.ties == 0
        assert drafts.tokens == sum(map(len, written))
        ended = sum(len(text) < T for text in written)  # where all of it may have been drafted
        assert 0 <= drafts.accepted + drafts.verifications - drafts.tokens <= ended, "each gives a token of its own"
        assert drafts.accepted < drafts.drafted, "control: a random model's layers differ"


@pytest.mark.parametrize("family", FAILS)
def test_other_families_are_refused_before_a_text_is_begun(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = module(family)
    stock: Any = model.backbone.model
    before = state(model)
    with monkeypatch.context() as patch:
        patch.setattr(type(stock), "generate", lambda *_, **__: pytest.fail("a text was begun"))
        with pytest.raises(UserError, match=rf"does not work with the family '{FAILS[family]}'.*runs 3 blocks .* one"):
            speculation_by_layer(model, *padded(texts()), max_new_tokens=T)
    assert state(model) == before
    with pytest.raises(IndexError):  # control: what the refusal spares a user in transformers 5.23
        plainly(stock, texts()[0], T, assistant_early_exit=1)
    assert stock.config.num_hidden_layers == 1, "control: and what is left behind"
    stock.config.num_hidden_layers = L


def test_a_model_that_heeds_the_number_and_then_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = module()
    before = state(model)

    def fail(*_: Any) -> None:
        raise KeyError("no room")

    monkeypatch.setattr(EarlyExitCandidateGenerator, "_generate_candidates", fail)
    with pytest.raises(UserError, match=r"fails with the family 'llama': KeyError\('no room'\)"):
        check_drafting(model.backbone.model)
    assert state(model) == before


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_an_aligned_model_accepts_what_one_trained_at_the_last_layer_does_not(family: str) -> None:
    aligned, last = (
        speculation_by_layer(trained(family, objective), *code(), max_new_tokens=30)
        for objective in (Aligned, LastLayer)
    )
    for one, other in zip(aligned.drafts, last.drafts, strict=True):
        assert one.ties == other.ties == 0
        assert one.tokens == other.tokens == 3 * 30
        assert one.acceptance > other.acceptance + 0.15, "control: standard training"
        assert one.tokens_per_verification > 1.2 * other.tokens_per_verification
    assert aligned.drafts[1].acceptance > 0.8


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_an_export_drafts_as_it_is(family: str, tmp_path: Path) -> None:
    model = trained(family, Aligned)
    backbone = model.backbone
    export_stock(backbone, model.head, TRAINED_LAYERS, tmp_path / "whole")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    ids, mask = code()
    expected = generate(model, ids, mask, layer=TRAINED_LAYERS, max_new_tokens=30).tolist()
    for layer in range(1, TRAINED_LAYERS):
        assert [plainly(loaded, row, 30, assistant_early_exit=layer) for row in ids.tolist()] == expected
    found, own = (
        speculation_by_layer(each, ids, mask, layers=[2], max_new_tokens=30).drafts[0] for each in (loaded, model)
    )
    assert (found.drafted, found.accepted, found.verifications) == (own.drafted, own.accepted, own.verifications)


def test_all_is_accepted_where_the_blocks_above_add_nothing() -> None:
    model = still_above(2)
    first, second = speculation_by_layer(model, *padded(texts()), max_new_tokens=T).drafts
    assert second.accepted == second.drafted > 0
    assert second.acceptance == 1
    assert first.acceptance < 1, "control: the block below does add something"


def test_a_draft_that_ends_the_text_is_accepted_whole() -> None:
    model = still_above(2)
    stock: Any = model.backbone.model
    row = texts()[0]
    text = plainly(stock, row, T)
    end = text[5]
    stock.generation_config.eos_token_id = end
    found = speculation_by_layer(model, *padded([row]), layers=[2], max_new_tokens=T).drafts[0]
    assert found.tokens == text.index(end) + 1 < T
    assert found.acceptance == 1, "transformers itself counts the end as the verification's own token"


@pytest.mark.parametrize("objective", [Aligned, LastLayer])
def test_counts_are_those_of_transformers(objective: type[Objective], monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, int]] = []
    update = EarlyExitCandidateGenerator.update_candidate_strategy

    def count(self: Any, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        counted.append((scores.shape[1] - 1, int(num_matches)))
        update(self, input_ids, scores, num_matches)

    model = trained("Llama", objective)
    monkeypatch.setattr(speculation, "check_drafting", lambda _: None)
    monkeypatch.setattr(EarlyExitCandidateGenerator, "update_candidate_strategy", count)
    found = speculation_by_layer(model, *code(), layers=[1], max_new_tokens=30).drafts[0]
    assert found.verifications == len(counted)
    assert found.drafted == sum(drafted for drafted, _ in counted)
    assert found.accepted == sum(accepted for _, accepted in counted) > 0


def test_neither_padding_nor_the_mode_matters() -> None:
    model = module()
    rows = texts()

    def counts(*prompts: Tensor) -> list[tuple[int, ...]]:
        found = speculation_by_layer(model, *prompts, max_new_tokens=T)
        return [(each.tokens, each.drafted, each.accepted, each.verifications) for each in found.drafts]

    expected = counts(*padded(rows))
    model.train()
    model.head.eval()
    before = state(model)
    assert counts(*padded(rows, side="right", width=12, padding=49)) == expected
    assert state(model) == before
    model.eval()


def test_a_model_is_as_it_was_after_an_error() -> None:
    stock: Any = module().backbone.model
    before = state(stock)

    def disturb() -> None:
        with undisturbed(stock):
            stock.train()
            stock.config.num_hidden_layers = 1
            stock.generation_config.max_new_tokens = 3
            assert state(stock)[:4] != before[:4]
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        disturb()
    assert state(stock) == before


def test_hooks_are_gone_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = module()
    before = state(model)
    write = speculation._write

    def fail(stock: Any, row: Tensor, layer: int | None, *rest: Any) -> list[int]:
        if layer is None:
            return write(stock, row, layer, *rest)
        raise RuntimeError("broken")

    monkeypatch.setattr(speculation, "_write", fail)
    with pytest.raises(RuntimeError, match="broken"):
        speculation_by_layer(model, *padded(texts()), max_new_tokens=T)
    assert state(model) == before


def test_plain_is_plain_though_the_model_drafts_by_itself() -> None:
    model = module.__wrapped__("Llama")
    stock: Any = model.backbone.model
    stock.generation_config.assistant_early_exit = 1
    forwards = 0

    def see(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    with undisturbed(stock):
        hook = stock.register_forward_pre_hook(see)
        speculation._write(stock, torch.tensor(texts()[0]), None, T)
        hook.remove()
    assert forwards == T
    assert stock.generation_config.assistant_early_exit == 1


def swap(monkeypatch: pytest.MonkeyPatch, place: int, instead: dict[int, int]) -> None:
    """Texts written with drafts have another token at a place."""
    write = speculation._write

    def other(stock: Any, row: Tensor, layer: int | None, *rest: Any) -> list[int]:
        text = write(stock, row, layer, *rest)
        if layer is not None:
            text[place] = instead.get(text[place], text[place])
        return text

    monkeypatch.setattr(speculation, "_write", other)


def test_another_text_is_an_error_and_a_tie_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    row = texts()[0]
    prompt = padded([row])
    model = module.__wrapped__("Llama")
    stock: Any = model.backbone.model
    text = plainly(stock, row, T)
    token = text[3]
    twin = next(number for number in range(token + 1, 50) if number not in text)  # of a tie the first is taken
    swap(monkeypatch, 3, {token: twin, twin: token})
    with pytest.raises(
        UserError, match=r"\(prompt 1, drafts from layer 1\): they part at new token 4 and at no tie, since logits are"
    ):
        speculation_by_layer(model, *prompt, max_new_tokens=T)
    with torch.no_grad():
        stock.lm_head.weight[twin] = stock.lm_head.weight[token]
    found = speculation_by_layer(model, *prompt, max_new_tokens=T)
    assert [drafts.ties for drafts in found.drafts] == [1, 1]


def test_a_text_cut_short_is_no_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    write = speculation._write

    def short(stock: Any, row: Tensor, layer: int | None, *rest: Any) -> list[int]:
        return write(stock, row, layer, *rest)[: T if layer is None else 5]

    monkeypatch.setattr(speculation, "_write", short)
    with pytest.raises(UserError, match="they part at new token 6 and at no tie, since one has 5 and the other 14"):
        speculation_by_layer(module(), *padded(texts()), max_new_tokens=T)


def test_speeds_are_paired_by_repeat_and_ways_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[tuple[int, int | None]] = []
    clock = [0.0]
    lasts = {None: [6.0, 8.0, 4.0], 1: [3.0, 2.0, 4.0], 2: [12.0, 4.0, 8.0]}

    def write(_: Any, row: Tensor, layer: int | None, *__: Any) -> list[int]:
        turns.append((len(row), layer))
        clock[0] += lasts[layer][(len(turns) - 4) // 9] / 3  # behind the three plain texts, nine a repeat
        return []

    monkeypatch.setattr(speculation, "_time", TIME)
    monkeypatch.setattr(speculation, "_write", write)
    monkeypatch.setattr(speculation, "perf_counter", lambda: clock[0])
    counts = {"tokens": 3, "drafted": 3, "accepted": 2, "verifications": 1, "ties": 0}
    monkeypatch.setattr(speculation, "_count", lambda *_: counts)
    monkeypatch.setattr(speculation, "check_drafting", lambda _: None)
    found = speculation_by_layer(module(), *padded(texts()), max_new_tokens=T, repeats=3)
    assert turns[3:] == [(len(row), layer) for _ in range(3) for row in texts() for layer in (None, 1, 2)]
    assert found.plain_seconds == pytest.approx(6)
    assert [drafts.seconds for drafts in found.drafts] == pytest.approx([3, 8])
    assert found.drafts[0].speeds == pytest.approx((2, 4, 1))
    assert found.drafts[1].speeds == pytest.approx((0.5, 2, 0.5))
    assert [drafts.speed for drafts in found.drafts] == pytest.approx([2, 0.5])
    assert found.best == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [0]}, "Expected layers to draft from, 1 … 2 of a model with 3, but got 0"),
        ({"layers": [3]}, "1 … 2 of a model with 3, but got 3"),
        ({"layers": []}, "but got none"),
        ({"repeats": 0}, "Expected repeats of at least 1, but got 0"),
        ({"max_new_tokens": 0}, "Expected max_new_tokens of at least 1, but got 0"),
        ({"max_new_tokens": 34}, "positions for 40 tokens, but the longest prompt has 7 and max_new_tokens is 34"),
    ],
)
def test_options_out_of_range_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        speculation_by_layer(module(), *padded(texts()), **{"max_new_tokens": T} | options)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, 6]], [[0, 0]], "one token or more"),
        ([[5, 60]], [[1, 1]], "vocabulary 0 … 49, but got 5 … 60"),
        ([[5, 6]], [[1]], "one shape"),
    ],
)
def test_prompts_that_cannot_be_continued_are_told(ids: Any, mask: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        speculation_by_layer(module(), torch.tensor(ids), torch.tensor(mask))


def test_what_writes_nothing_is_refused() -> None:
    classifier = build(ENCODERS["BERT"])
    with pytest.raises(UserError, match="Use a TransformersBackbone with task: language-modeling"):
        speculation_by_layer(LayerwiseModule(classifier), *padded(texts()))
    with pytest.raises(UserError, match=r"Expected a LayerwiseModule or a causal .*, but got BertForSequence"):
        speculation_by_layer(classifier.model, *padded(texts()))
    with pytest.raises(UserError, match="but the backbone is a TimmBackbone"):
        speculation_by_layer(tiny.module(), *padded(texts()))
