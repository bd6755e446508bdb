from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersim.backbones import TransformersBackbone
from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.heads import SeparateHeads, SharedHead
from layersim.module import LayerwiseModule
from layersim.text.generation import draw, generate, nucleus
from tests import tiny
from tests.backbones.tiny_transformers import CAUSAL, DECODER, L, build

pytestmark = pytest.mark.filterwarnings("ignore:.*max_new_tokens.*")

FAMILIES = CAUSAL | {
    "Mistral, window of 4": CAUSAL["Mistral"] | {"sliding_window": 4},
    "Gemma 2, window of 4": CAUSAL["Gemma 2, softcapped"] | {"sliding_window": 4},
    "Gemma 2, full attention first": CAUSAL["Gemma 2, softcapped"]
    | {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "Llama, eager attention": {"model_type": "llama", **DECODER, "attn_implementation": "eager"},
}
T = 14
LENGTHS = (7, 1, 4)


@cache
def module(family: str = "Llama", head: Any = SharedHead) -> LayerwiseModule:
    arguments = FAMILIES[family] | {"tie_word_embeddings": False}  # tied random weights say the last token again
    options = {"attn_implementation": arguments.pop("attn_implementation", None)}
    backbone = build(arguments, "language-modeling", **options)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in backbone.named_parameters():  # so wide that texts do not stand still
        nn.init.normal_(parameter, std=0.05 if name.endswith("bias") else 0.5, generator=generator)
    return LayerwiseModule(backbone, head=head).eval()


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, 50, (length,), generator=generator).tolist() for length in LENGTHS]


def padded(rows: list[list[int]], side: str = "left", width: int = 7, padding: int = 0) -> tuple[Tensor, Tensor]:
    gaps = [[padding] * (width - len(row)) for row in rows]
    masks = [[0] * len(gap) for gap in gaps]
    if side == "left":
        ids = [gap + row for gap, row in zip(gaps, rows, strict=True)]
        mask = [gap + [1] * len(row) for gap, row in zip(masks, rows, strict=True)]
    else:
        ids = [row + gap for gap, row in zip(gaps, rows, strict=True)]
        mask = [[1] * len(row) + gap for gap, row in zip(masks, rows, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def plain_loop(model: LayerwiseModule, layer: int, prompt: list[int], steps: int = T) -> list[int]:
    """One text without padding, mask or cache, read from the library's own hidden states."""
    backbone: Any = model.backbone
    row = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            found: dict[int, Tensor] = {}
            blocks = backbone.model.base_model.get_submodule(backbone.layout.blocks)
            hook = blocks[layer - 1].register_forward_hook(
                lambda _, __, out, found=found: found.update(out=out if isinstance(out, Tensor) else out[0])
            )
            backbone.model(input_ids=torch.tensor([row]), use_cache=False)
            hook.remove()
            row.append(int(model.head.logits(found["out"][:1, -1:], [layer - 1])[0, 0].argmax()))
    return row[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_last_layer_greedy_is_the_librarys_own_generation(family: str) -> None:
    model = module(family)
    ids, mask = padded(texts())
    stock: Any = model.backbone.model
    expected = stock.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=T, eos_token_id=None, pad_token_id=0
    )
    found = generate(model, ids, mask, layer=L, max_new_tokens=T)
    assert found.tolist() == expected[:, ids.shape[1] :].tolist()
    assert len(set(found.flatten().tolist())) > 3, "control: the texts say something"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_writes_what_a_plain_loop_over_its_readings_writes(family: str) -> None:
    model = module(family)
    ids, mask = padded(texts())
    written = {}
    for layer in range(1, L + 1):
        found = generate(model, ids, mask, layer=layer, max_new_tokens=T)
        assert found.tolist() == generate(model, ids, mask, layer=layer, max_new_tokens=T, use_cache=False).tolist()
        assert found[2].tolist() == plain_loop(model, layer, texts()[2])
        written[layer] = found.tolist()
    assert written[1] != written[2] != written[L], "control: layers differ"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top_p", [None, 0.9])
def test_neither_padding_nor_companions_matter(family: str, top_p: float | None) -> None:
    model, rows = module(family), texts()

    def write(rows: list[list[int]], **shape: Any) -> list[list[int]]:
        ids, mask = padded(rows, **shape)
        generator = torch.Generator().manual_seed(5)
        return generate(model, ids, mask, layer=2, max_new_tokens=T, top_p=top_p, generator=generator).tolist()

    together = write(rows)
    assert write(rows, side="right") == together
    assert write(rows, width=12, padding=49) == together, "wider padding, made of a token that the texts use"
    assert write(rows[:1]) == together[:1]
    assert write([rows[0], rows[0], rows[0]])[0] == together[0]
    assert write([rows[1], rows[1], rows[2]])[2] == together[2], "draws belong to a row"


def test_batches_in_turn_have_the_draws_of_all_rows_at_once() -> None:
    ids, mask = padded(texts())
    options: dict[str, Any] = {"layer": 3, "max_new_tokens": T, "top_p": 0.9}
    together = generate(module(), ids, mask, **options, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    first = generate(module(), ids[:1], mask[:1], **options, generator=generator)
    second = generate(module(), ids[1:], mask[1:], **options, generator=generator)
    assert torch.cat([first, second]).tolist() == together.tolist()
    other = generate(module(), ids, mask, **options, generator=torch.Generator().manual_seed(2))
    assert other.tolist() != together.tolist(), "control: another seed"


@pytest.mark.parametrize("head", [SharedHead, lambda backbone: SharedHead(backbone, norm="none"), SeparateHeads])
def test_every_head_is_read_as_it_reads(head: Any) -> None:
    model = module("GPT-2", head)
    ids, mask = padded(texts())
    for layer in (1, L):
        found = generate(model, ids, mask, layer=layer, max_new_tokens=T)
        assert found[0].tolist() == plain_loop(model, layer, texts()[0])


@pytest.mark.parametrize("use_cache", [True, False])
def test_blocks_above_the_layer_do_not_run_and_the_model_is_left_as_it_was(use_cache: bool) -> None:
    model = module("GPT-2")
    ids, mask = padded(texts())
    stock: Any = model.backbone.model
    before = stock(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    hooked = [len(block._forward_hooks) for block in stock.transformer.h]  # transformers leaves some of its own
    ran: Counter[int] = Counter()
    hooks = [
        block.register_forward_hook(lambda _, __, ___, place=place: ran.update([place]))
        for place, block in enumerate(stock.transformer.h)
    ]
    generate(model, ids, mask, layer=2, max_new_tokens=5, use_cache=use_cache)
    assert ran == {0: 5, 1: 5}, "and 2, the last, never"
    for hook in hooks:
        hook.remove()
    after = stock(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert [len(block._forward_hooks) for block in stock.transformer.h] == hooked


@pytest.mark.parametrize("top_p", [None, 1.0])
def test_a_text_ends_at_its_end_and_the_others_go_on(top_p: float | None) -> None:
    ids, mask = padded(texts())

    def write(**end: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        return generate(
            module(), ids, mask, layer=L, max_new_tokens=T, top_p=top_p, generator=generator, **end
        ).tolist()

    endless = write()
    end = endless[0][3]
    expected = [row[: row.index(end)] if end in row else row for row in endless]
    expected = [row + [end] * (T - len(row)) for row in expected]
    assert write(eos_token_id=end) == expected
    assert expected[0] != endless[0], "control: something was cut"
    stock: Any = module().backbone.model
    if top_p is None:
        longest = stock.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=T, eos_token_id=end, pad_token_id=end
        )[:, ids.shape[1] :]
        assert longest.tolist() == [row[: longest.shape[1]] for row in expected]
        assert all(token == end for row in expected for token in row[longest.shape[1] :])


def test_dropout_is_off_meanwhile_and_each_part_gets_its_mode_back() -> None:
    model = LayerwiseModule(build(CAUSAL["GPT-2"] | {"resid_pdrop": 0.5}, "language-modeling"))
    ids, mask = padded(texts())
    model.eval()
    expected = generate(model, ids, mask, layer=L, max_new_tokens=T)
    model.train()
    model.head.eval()
    assert generate(model, ids, mask, layer=L, max_new_tokens=T).tolist() == expected.tolist()
    assert model.training
    assert model.backbone.training
    assert not model.head.classifier.training
    with pytest.raises(UserError), evaluating(model):
        generate(model, ids, mask, layer=0, max_new_tokens=1)
    assert model.backbone.training, "after an error too"


def test_the_nucleus_is_the_smallest_set_that_reaches_p() -> None:
    probabilities = torch.tensor([[0.15, 0.5, 0.05, 0.3], [0.1, 0.2, 0.3, 0.4]])

    def kept(top_p: float) -> list[list[int]]:
        return [row.isfinite().nonzero().flatten().tolist() for row in nucleus(probabilities.log(), top_p)]

    assert kept(0.45) == [[1], [2, 3]]
    assert kept(0.51) == [[1, 3], [2, 3]]
    assert kept(0.79) == [[1, 3], [1, 2, 3]]
    assert kept(0.81) == [[0, 1, 3], [1, 2, 3]]
    assert kept(1.0) == [[0, 1, 2, 3]] * 2
    assert kept(1e-9) == [[1], [3]]


def test_a_draw_inverts_the_cumulated_probability() -> None:
    logits = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0]).log()
    #  cumulated: 0, .2, .2, .7, 1, 1; reached by 1 − u
    uniform = torch.tensor([0.0, 0.29, 0.31, 0.79, 0.81, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(6, -1), uniform).tolist() == [4, 4, 3, 3, 1, 1]


def test_draws_have_the_nucleus_renormalised_probabilities() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.3])
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = draw(nucleus(probabilities.log().expand(40_000, -1), 0.8), uniform)
    shares = tokens.bincount(minlength=4) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0, 4 / 9, 2 / 9, 3 / 9]), atol=0.01, rtol=0)


def test_a_cold_or_narrow_draw_is_greedy_and_a_hot_one_is_not() -> None:
    ids, mask = padded(texts())

    def write(**options: Any) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        return generate(module(), ids, mask, layer=2, max_new_tokens=T, generator=generator, **options).tolist()

    greedy = write()
    assert write(top_p=1e-6) == write(top_p=1.0, temperature=1e-4) == greedy
    assert write(top_p=1.0, temperature=3.0) != greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 0}, "Expected a layer of llama, 1 … 3, but got 0"),
        ({"layer": 4}, "Expected a layer of llama, 1 … 3, but got 4"),
        ({"max_new_tokens": 0}, "Expected max_new_tokens of at least 1, but got 0"),
        ({"top_p": 0.0}, "Expected top_p above 0 and at most 1, but got 0.0"),
        ({"top_p": 1.1}, "Expected top_p"),
        ({"top_p": 0.9, "temperature": 0.0}, "Expected temperature above 0, but got 0.0"),
        ({"temperature": 0.7}, "Greedy decoding .* temperature is 0.7.* Set top_p"),
        ({"eos_token_id": 50}, r"Expected eos_token_id in the vocabulary 0 … 49, but got 50"),
        ({"max_new_tokens": 34}, "positions for 40 tokens, but the longest prompt has 7 and max_new_tokens is 34"),
    ],
)
def test_options_out_of_range_are_told(options: dict[str, Any], message: str) -> None:
    ids, mask = padded(texts(), width=20)
    with pytest.raises(UserError, match=message):
        generate(module(), ids, mask, **{"layer": 1, "max_new_tokens": 2} | options)


def test_a_text_may_fill_all_positions() -> None:
    model = module("GPT-2")
    row = texts()[0]
    ids, mask = padded([row], width=30)
    found = generate(model, ids, mask, layer=1, max_new_tokens=33)
    assert found[0, :T].tolist() == plain_loop(model, 1, row)
    assert found[0, -1].tolist() == plain_loop(model, 1, row + found[0, :-1].tolist(), steps=1)[0]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, 6]], [[0, 0]], "one token or more"),
        ([[5, 60]], [[1, 1]], r"vocabulary 0 … 49 of llama, but got 5 … 60"),
        ([[5, -100]], [[1, 1]], r"got -100 … 5"),
        ([[5, 6]], [[1]], r"one shape.*\(1, 2\) and \(1, 1\)"),
        ([5, 6], [1, 1], "one shape, prompts × tokens"),
    ],
)
def test_prompts_that_cannot_be_continued_are_told(ids: Any, mask: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(module(), torch.tensor(ids), torch.tensor(mask), layer=1, max_new_tokens=2)


def test_a_classifier_writes_nothing() -> None:
    ids, mask = padded(texts())
    classifier = LayerwiseModule(build(CAUSAL["GPT-2"]))
    with pytest.raises(UserError, match=r"for classification\. Use a .* task: language-modeling"):
        generate(classifier, ids, mask, layer=1, max_new_tokens=2)
    with pytest.raises(UserError, match="but the backbone is a TimmBackbone"):
        generate(tiny.module(), ids, mask, layer=1, max_new_tokens=2)
    assert isinstance(classifier.backbone, TransformersBackbone)
