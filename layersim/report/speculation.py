"""What drafting from each layer gained: the numbers, and their table."""

from dataclasses import dataclass
from math import nan
from statistics import median

from rich import box
from rich.table import Table
from rich.text import Text

from layersim.report.terminal import Beside


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """What drafting from one layer gave, over all prompts."""

    layer: int
    """1 … L − 1, what `assistant_early_exit` takes."""
    tokens: int
    """That were written."""
    drafted: int
    accepted: int
    """Of the drafted tokens."""
    verifications: int
    """Passes of the whole model."""
    ties: int
    """Texts that part from plain greedy decoding's where its two most likely tokens were a tie."""
    seconds: float
    """For all prompts, median over the repeats."""
    speeds: tuple[float, ...]
    """Plain greedy decoding's seconds ÷ these, of each repeat."""

    @property
    def acceptance(self) -> float:
        """Accepted ÷ drafted tokens, 0 … 1; NaN where T = 1 left nothing to draft."""
        return self.accepted / self.drafted if self.drafted else nan

    @property
    def tokens_per_verification(self) -> float:
        """Tokens written in each pass of the whole model, at least 1."""
        return self.tokens / self.verifications

    @property
    def speed(self) -> float:
        """How many times as fast as plain greedy decoding: the median of the paired ratios."""
        return median(self.speeds)


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """What `layersim.text.speculation_by_layer` measured. Letters: L layers, N prompts, T new tokens."""

    num_layers: int
    """L."""
    prompts: int
    """N."""
    max_new_tokens: int
    """T."""
    plain_seconds: float
    """Of plain greedy decoding, for all prompts, median over the repeats."""
    drafts: tuple[Drafts, ...]
    """By layer, ascending."""

    @property
    def best(self) -> int | None:
        """The layer to draft from, the fastest; None where none is faster than plain greedy decoding."""
        fastest = max(self.drafts, key=lambda drafts: drafts.speed)
        return fastest.layer if fastest.speed > 1 else None

    def describe(self) -> str:
        """Two sentences: the layer to draft from, or that there is none; a third where texts part at a tie."""
        return " ".join(self.sentences())

    def sentences(self) -> list[str]:
        """Those of `describe`."""
        fastest = max(self.drafts, key=lambda drafts: drafts.speed)
        gain, accepted = f"{fastest.speed:.2f} times", f"{fastest.acceptance:.0%} of its drafts accepted"
        if self.best is None:
            told = ["No layer is faster than plain greedy decoding."]
            told.append(f"The nearest is layer {fastest.layer}: {gain} its speed, {accepted}.")
        else:
            told = [f"Draft with generate(assistant_early_exit={self.best})."]
            told.append(f"It is {gain} as fast as plain greedy decoding, {accepted}.")
        if parted := max(drafts.ties for drafts in self.drafts):
            told.append(f"Up to {parted} of {self.prompts} texts part from plain greedy decoding's at a tie.")
        return told


def speculation_table(speculation: Speculation) -> Table:
    """A row a layer, and below the layer to draft from; the range of the speed is that of the repeats."""
    table = Table(
        title=Beside(
            f"{speculation.prompts} prompts, up to {speculation.max_new_tokens} new tokens each; "
            f"plain greedy decoding {speculation.plain_seconds:.2f} s"
        ),
        caption=Beside("\n".join(speculation.sentences())),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("draft from\nlayer", "accepted", "tokens a\nverification", "seconds", "speed ÷\nplain", "range"):
        table.add_column(Text(name), justify="right", vertical="bottom")
    for drafts in speculation.drafts:
        table.add_row(
            str(drafts.layer),
            f"{drafts.acceptance:.1%}",
            f"{drafts.tokens_per_verification:.2f}",
            f"{drafts.seconds:.2f}",
            f"{drafts.speed:.2f}",
            f"{min(drafts.speeds):.2f} – {max(drafts.speeds):.2f}",
        )
    return table
