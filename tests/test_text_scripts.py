"""experiments/text: what each layer writes, how good that is, and what drafting from a layer gains."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from layersim.errors import UserError
from layersim.heads import SeparateHeads, SharedHead
from layersim.module import LayerwiseModule
from tests.backbones.tiny_transformers import CAUSAL, L, build

pytestmark = pytest.mark.filterwarnings("ignore:.*max_new_tokens.*")

SCRIPTS = Path(__file__).parent.parent / "experiments" / "text"
T = 14
LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 32, "vocab_size": 258, "max_position_embeddings": 64, "pad_token_id": 257}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports one of the scripts, which stand beside each other and not in a package."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield lambda name: __import__(name)
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def module(family: str = "Llama", head: Any = SharedHead) -> LayerwiseModule:
    backbone = build(CAUSAL[family] | {"tie_word_embeddings": False}, "language-modeling")
    generator = torch.Generator().manual_seed(2)
    for name, parameter in backbone.named_parameters():  # so wide that texts do not stand still
        nn.init.normal_(parameter, std=0.05 if name.endswith("bias") else 0.5, generator=generator)
    return LayerwiseModule(backbone, head=head).eval()


def prompts() -> Tensor:
    return torch.randint(5, 50, (3, 7), generator=torch.Generator().manual_seed(3))


def readings(model: Any, ids: Tensor, layer: int) -> Tensor:
    """Logits of the next token behind one text, read from the library's own hidden states by the module's head."""
    hidden = model.backbone.model.base_model(input_ids=ids.unsqueeze(0), output_hidden_states=True).hidden_states
    return model.head.logits(hidden[layer][:, -1:], [layer - 1])[0, 0]


@pytest.mark.parametrize("head", [SharedHead, SeparateHeads])
@pytest.mark.parametrize("family", ["Llama", "GPT-2"])
@torch.no_grad()
def test_every_layer_writes_what_its_readings_say(script: Callable[[str], Any], family: str, head: Any) -> None:
    model, quality = module(family, head), script("quality_by_layer")
    written = []
    for layer in range(1, L):  # transformers norms the last hidden state itself
        new = quality.continued(quality.cut(model, layer), prompts(), T, top_p=1e-9)  # of which one token is left
        for row, text in zip(prompts(), new, strict=True):
            for place in range(T):
                expected = readings(model, torch.cat([row, text[:place]]), layer)
                assert expected.max() - expected[text[place]] < 1e-4
        written.append(new.tolist())
    assert written[0] != written[1], "control: layers differ"


def test_one_seed_writes_one_text_and_another_seed_another(script: Callable[[str], Any]) -> None:
    model, quality = module(), script("quality_by_layer")
    whole = quality.cut(model, L)
    one, again, other = (quality.continued(whole, prompts(), T, seed=seed).tolist() for seed in (0, 0, 1))
    assert one == again != other


def test_qualities_are_those_of_the_layers_texts(script: Callable[[str], Any]) -> None:
    model, quality = module(), script("quality_by_layer")
    judge = quality.cut(model, L)
    rows = quality.quality_by_layer(model, judge, prompts(), T)
    assert len(rows) == L
    for layer, (likely, diverse, repeated) in enumerate(rows, start=1):
        new = quality.continued(quality.cut(model, layer), prompts(), T)
        stock: Any = model.backbone.model
        with torch.no_grad():
            logits = stock(torch.cat([prompts(), new], dim=1)).logits.double()[:, 6:-1]
        losses = cross_entropy(logits.transpose(1, 2), new, reduction="none")
        assert likely == pytest.approx(math.exp(losses.mean()), rel=1e-6)
        assert diverse == quality.diversity(new.tolist())
        assert repeated == quality.repetition(new.tolist(), 4)
    assert len({row[0] for row in rows}) == L, "control: layers differ"


def test_n_grams_worked_by_hand(script: Callable[[str], Any]) -> None:
    quality = script("quality_by_layer")
    texts = [[1, 2, 1, 2, 1], [1, 2, 3]]  # bigrams ab ba ab ba, ab bc; trigrams aba bab aba, abc; 4-grams abab baba
    shares = [quality.repetition(texts, n) for n in (1, 2, 3, 4)]
    assert shares == pytest.approx([1 - 5 / 8, 1 - 4 / 6, 1 - 3 / 4, 0], abs=1e-15)
    assert quality.diversity(texts) == pytest.approx(4 / 6 * 3 / 4, abs=1e-15)
    assert quality.diversity([[1, 2, 3, 4, 5]] * 2) == 1, "what two texts share repeats nothing"
    assert math.isnan(quality.diversity([[1, 2, 3], []]))


def still_above(layer: int) -> LayerwiseModule:
    """A Llama whose blocks above a layer add nothing, so that the layer says what the last one says."""
    model = module()
    backbone: Any = model.backbone
    for block in backbone.model.model.layers[layer:]:
        nn.init.zeros_(block.self_attn.o_proj.weight)
        nn.init.zeros_(block.mlp.down_proj.weight)
    return model


def test_all_is_accepted_where_the_blocks_above_add_nothing(script: Callable[[str], Any]) -> None:
    speculation = script("speculation")
    stock: Any = still_above(2).backbone.model
    before = stock.config.to_dict()
    speculation.check_drafting(stock)
    with speculation.undisturbed(stock):
        plain = [speculation.write(stock, row, None, T) for row in prompts()]
        first, second = (speculation.draft(stock, prompts(), plain, layer, T) for layer in (1, 2))
    assert stock.config.to_dict() == before
    assert second.accepted == second.drafted > 0
    assert first.accepted < first.drafted, "control: the block below does add something"
    assert first.tokens == second.tokens == 3 * T
    assert first.ties == second.ties == 0
    assert second.accepted + second.verifications == second.tokens, "each verification gives a token of its own"


def test_a_text_that_is_not_the_plain_one_is_refused_but_for_a_tie(script: Callable[[str], Any]) -> None:
    speculation = script("speculation")
    stock: Any = module().backbone.model
    text = speculation.write(stock, prompts()[0], None, T)
    twin = next(token for token in range(5, 50) if token not in text)
    other = [*text[:3], twin, *text[4:]]
    with pytest.raises(UserError, match="part at new token 4, and logits are"):
        speculation.check_tie(stock, prompts()[0], other, text)
    with torch.no_grad():
        stock.lm_head.weight[twin] = stock.lm_head.weight[text[3]]
    speculation.check_tie(stock, prompts()[0], other, text)
    with pytest.raises(UserError, match="one has 5 and the other 14 tokens"):
        speculation.check_tie(stock, prompts()[0], text[:5], text)


def test_families_whose_forward_runs_all_blocks_are_refused(script: Callable[[str], Any]) -> None:
    stock: Any = module("GPT-2").backbone.model
    with pytest.raises(UserError, match=r"does not work with the family 'gpt2': .* runs 3 blocks"):
        script("speculation").check_drafting(stock)
    assert stock.config.num_hidden_layers == L


def test_both_take_a_finished_run(
    script: Callable[[str], Any], layersim: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    flags = ["--data=StdlibCode", "--data.max_files=12", "--data.block_size=48", "--data.max_eval_samples=9"]
    flags += ["--model.backbone=TransformersBackbone", "--model.backbone.task=language-modeling"]
    flags += ["--model.backbone.pretrained=false", f"--model.backbone.config_args={json.dumps(LLAMA)}"]
    flags += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.logger=false"]
    run = layersim("fit", *flags, "--trainer.accelerator=cpu", "--experiment=code/llama")
    capsys.readouterr()
    sizes = ["--prompts=2", "--length=8", "--new=6"]
    monkeypatch.setattr(sys, "argv", ["quality_by_layer.py", str(run), *sizes, "--output=quality.png"])
    script("quality_by_layer").main()
    told = capsys.readouterr().out
    assert "2 prompts of 8 tokens" in told
    assert [f"| llama | {layer} |" in told for layer in (1, 2, 3, 4)] == [True, True, True, False]
    assert Path("quality.png").is_file()
    monkeypatch.setattr(sys, "argv", ["speculation.py", str(run), *sizes, "--repeats=1"])
    script("speculation").main()
    told = capsys.readouterr().out
    assert "2 prompts, 6 new tokens each" in told
    assert ["\n| 1 |" in told, "\n| 2 |" in told, "\n| 3 |" in told] == [True, True, False]
