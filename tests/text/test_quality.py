import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from layersim.errors import UserError
from layersim.heads import SeparateHeads
from layersim.module import LayerwiseModule
from layersim.text import diversity, generate, perplexity, quality_by_layer, repetition
from layersim.text.quality import continuation_loss, without_end
from tests.backbones.tiny_transformers import CAUSAL, L, build
from tests.text.test_generation import T, module, padded, texts

OPTIONS: dict[str, Any] = {"max_new_tokens": T, "top_p": 0.9, "seed": 4}


def judged(model: Any, prompt: list[int], new: list[int]) -> torch.Tensor:
    """Cross-entropies of one text's new tokens by the library's own model, in float64."""
    with torch.no_grad():
        logits = model.backbone.model(input_ids=torch.tensor([prompt + new])).logits[0].double()
    return cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(new), reduction="none")


@pytest.mark.parametrize("family", ["GPT-2", "OPT", "Llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_new_tokens_is_the_librarys(family: str, side: str) -> None:
    model, rows = module(family), texts()
    ids, mask = padded(rows, side=side, width=9)
    new = generate(model, ids, mask, layer=1, max_new_tokens=T)
    loss, tokens = continuation_loss(model, ids, mask, new)
    each = [judged(model, row, written) for row, written in zip(rows, new.tolist(), strict=True)]
    assert tokens == 3 * T
    assert loss == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)


def test_the_end_counts_once_and_what_stands_behind_it_never() -> None:
    model, rows = module(), texts()
    ids, mask = padded(rows)
    new = torch.tensor([[8, 9, 7, 7], [7, 7, 7, 7], [8, 9, 6, 5]])
    loss, tokens = continuation_loss(model, ids, mask, new, eos_token_id=7)
    each = [judged(model, row, kept) for row, kept in zip(rows, [[8, 9, 7], [7], [8, 9, 6, 5]], strict=True)]
    assert tokens == 8
    assert loss == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)
    assert without_end(new, 7) == [[8, 9], [], [8, 9, 6, 5]]
    assert without_end(new, None) == new.tolist()


def test_every_number_is_that_of_the_layers_own_texts() -> None:
    model = module()
    ids, mask = padded(texts())
    end = int(generate(model, ids, mask, layer=2, max_new_tokens=T)[0, 5])
    quality = quality_by_layer(model, ids, mask, **OPTIONS, eos_token_id=end)
    assert (quality.layers, quality.samples) == ([1, 2, 3], 3)
    assert quality.options == {"max_new_tokens": T, "top_p": 0.9, "temperature": 1.0, "seed": 4}
    for place, layer in enumerate(quality.layers):
        generator = torch.Generator().manual_seed(4)
        new = generate(
            model, ids, mask, layer=layer, max_new_tokens=T, top_p=0.9, generator=generator, eos_token_id=end
        )
        written = without_end(new, end)
        loss, _ = continuation_loss(model, ids, mask, new, eos_token_id=end)
        assert quality.perplexity[place] == pytest.approx(math.exp(loss), rel=1e-6)
        assert quality.diversity[place] == diversity(written)
        assert quality.repetition[place] == repetition(written, 4)
    assert len(set(quality.perplexity)) == 3, "control: layers differ"


def test_batches_change_no_number_and_layers_can_be_chosen() -> None:
    ids, mask = padded(texts())
    whole = quality_by_layer(module(), ids, mask, **OPTIONS)
    one_by_one = quality_by_layer(module(), ids, mask, **OPTIONS, layers=[3, 1], batch_size=1)
    assert one_by_one.layers == [1, 3]
    assert one_by_one.perplexity == pytest.approx([whole.perplexity[0], whole.perplexity[2]], rel=1e-5)
    assert one_by_one.diversity == [whole.diversity[0], whole.diversity[2]]
    assert one_by_one.repetition == [whole.repetition[0], whole.repetition[2]]


def test_another_model_can_judge() -> None:
    writer, judge = module(), module("GPT-2")
    ids, mask = padded(texts())
    own, others = (quality_by_layer(writer, ids, mask, **OPTIONS, judge=one) for one in (None, judge))
    assert others.diversity == own.diversity
    generator = torch.Generator().manual_seed(4)
    new = generate(writer, ids, mask, layer=L, max_new_tokens=T, top_p=0.9, generator=generator)
    loss, _ = continuation_loss(judge, ids, mask, new)
    assert others.perplexity[-1] == pytest.approx(math.exp(loss), rel=1e-6) != own.perplexity[-1]


def test_separate_heads_are_judged_by_the_last() -> None:
    model = module("GPT-2", SeparateHeads)
    ids, mask = padded(texts())
    new = generate(model, ids, mask, layer=1, max_new_tokens=T)
    loss, _ = continuation_loss(model, ids, mask, new)
    each = [judged(model, row, written) for row, written in zip(texts(), new.tolist(), strict=True)]
    assert loss == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)


def test_texts_that_end_at_once_have_no_diversity_and_a_perplexity() -> None:
    model = module()
    ids, mask = padded(texts()[:1])
    end = int(generate(model, ids, mask, layer=2, max_new_tokens=1))
    quality = quality_by_layer(model, ids, mask, layers=[2], max_new_tokens=T, top_p=None, eos_token_id=end)
    assert math.isnan(quality.diversity[0])
    assert math.isnan(quality.repetition[0])
    assert quality.perplexity[0] == pytest.approx(math.exp(judged(model, texts()[0], [end])[0]), rel=1e-5)


def test_what_cannot_be_measured_is_told_before_anything_is_written() -> None:
    ids, mask = padded(texts())
    with pytest.raises(UserError, match="Expected a layer of llama, 1 … 3, but got 1, 4"):
        quality_by_layer(module(), ids, mask, layers=[1, 4])
    with pytest.raises(UserError, match="but got none"):
        quality_by_layer(module(), ids, mask, layers=[])
    with pytest.raises(UserError, match="batch_size of at least 1, but got 0"):
        quality_by_layer(module(), ids, mask, batch_size=0)
    with pytest.raises(UserError, match="one prompt or more"):
        quality_by_layer(module(), ids[:0], mask[:0])
    with pytest.raises(UserError, match="one shape"):
        quality_by_layer(module(), ids, mask[:1])
    smaller = LayerwiseModule(build(CAUSAL["Llama"] | {"vocab_size": 49}, "language-modeling"))
    with pytest.raises(UserError, match="a judge with the model's 50 tokens, but it has 49"):
        quality_by_layer(module(), ids, mask, judge=smaller)


def test_perplexity_is_the_exponential_of_a_loss_in_nats() -> None:
    found = perplexity([0.0, math.log(258), math.nan, 1e4])
    assert found[:2] == [1.0, pytest.approx(258, rel=1e-14)]
    assert math.isnan(found[2])
    assert found[3] == math.inf
