import math

from rich.console import Console

from layersim.report.speculation import Drafts, Speculation, speculation_table


def drafts(layer: int, *speeds: float, ties: int = 0) -> Drafts:
    return Drafts(
        layer=layer,
        tokens=120,
        drafted=80,
        accepted=60,
        verifications=48,
        ties=ties,
        seconds=2.0,
        speeds=speeds,
    )


def speculation(*each: Drafts) -> Speculation:
    return Speculation(num_layers=4, prompts=5, max_new_tokens=24, plain_seconds=3.0, drafts=each)


def test_ratios_are_of_sums() -> None:
    found = drafts(1, 0.5, 3.0, 1.5)
    assert found.acceptance == 0.75
    assert found.tokens_per_verification == 2.5
    assert found.speed == 1.5
    nothing = Drafts(layer=1, tokens=5, drafted=0, accepted=0, verifications=5, ties=0, seconds=1.0, speeds=(1.0,))
    assert math.isnan(nothing.acceptance)


def test_the_fastest_layer_is_proposed_and_none_that_is_not_faster_than_plain() -> None:
    faster = speculation(drafts(1, 1.1), drafts(2, 1.4), drafts(3, 0.9))
    assert faster.best == 2
    assert faster.describe() == (
        "Draft with generate(assistant_early_exit=2). "
        "It is 1.40 times as fast as plain greedy decoding, 75% of its drafts accepted."
    )
    slower = speculation(drafts(1, 0.8), drafts(2, 1.0), drafts(3, 0.9, ties=2))
    assert slower.best is None
    assert slower.describe() == (
        "No layer is faster than plain greedy decoding. "
        "The nearest is layer 2: 1.00 times its speed, 75% of its drafts accepted. "
        "Up to 2 of 5 texts part from plain greedy decoding's at a tie."
    )


def test_the_table_tells_it_all_on_eighty_columns() -> None:
    console = Console(width=80)
    found = speculation(drafts(1, 1.1, 0.7, 1.3), drafts(2, 1.4, ties=1))
    with console.capture() as captured:
        console.print(speculation_table(found))
    text = captured.get()
    assert "5 prompts, up to 24 new tokens each; plain greedy decoding 3.00 s" in text
    assert ["1", "75.0%", "2.50", "2.00", "1.10", "0.70", "–", "1.30"] in [row.split() for row in text.splitlines()]
    assert all(sentence in text for sentence in found.sentences())
