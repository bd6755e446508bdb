"""The page in a real browser: what moves, what is said, and that nothing leaves it.

Needs Chromium or Chrome on the PATH and the package playwright, whose own browsers are not used.
"""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from layersim.report.progression_record import COLLAPSE

from layersim.report.page import write_page
from layersim.report.records import LayerRecord
from tests.report.test_page import HOSTILE, make_run, record

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE = 600_000  # ms, of a machine that does much else
EPOCHS = 4
LAYERS = 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium on the PATH ({', '.join(names)})")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=found, args=["--host-resolver-rules=MAP * ~NOTFOUND"], timeout=PATIENCE
        )
        yield opened
        opened.close()


def measured(epoch: int, shift: float = 0.0) -> LayerRecord:
    accuracy = [0.2 + 0.1 * epoch + 0.15 * layer + shift for layer in range(LAYERS)]
    curve: dict[str, list[Any]] = {
        "threshold": [0.5, 0.9, None],
        "mean_exit_layer": [1.0, 2.0, 3.0],
        "accuracy": accuracy,
    }
    matrix = [[1.0 if i == j else round(0.9 - 0.2 * abs(i - j) - 0.1 * epoch, 3) for j in range(3)] for i in range(3)]
    moved = [[value + end for value in row] for end in (-0.05, 0.05) for row in matrix]
    rises = [0.25 + 0.1 * epoch, 0.75]
    shares = {"cosine": [0.5, 0.7, 1.0], "cosine_rises": 0.2, "cosine_rises_by_step": rises}
    progression = shares | {key.replace("cosine", "target_probability"): value for key, value in shares.items()}
    progression |= {"path_over_chord": 1.5, "angle": [30.0], "distance_to_segment": [0.0, 0.2, 0.0]}
    progression |= {"skip_over_residual": [1.0, 1.0], "cosine_cka": {"pearson": 0.9, "spearman": 0.8}}
    collapse = {name: [2.0, 1.0, 0.5 - 0.1 * epoch] for name in COLLAPSE}
    return record(
        epoch,
        LAYERS,
        accuracy=accuracy,
        exit_curve=curve,
        similarity={"cosine": matrix, HOSTILE: matrix},
        similarity_interval={"cosine": {"confidence": 0.95, "low": moved[:LAYERS], "high": moved[LAYERS:]}},
        similarity_to_epoch={"cka": {"0": [0.9 - 0.1 * epoch, 0.6, 0.5]}} if epoch else {},
        progression=progression
        | {"samples": 80, "centering": "samples", "neural_collapse": collapse | {"classes": [0, 1]}},
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    configs = [f"experiment: {name!r}\nseed_everything: {seed}\n" for name, seed in (("a", 0), ("a", 1), (HOSTILE, 0))]
    runs = [
        make_run(place / f"x{i}", *(measured(epoch, 0.02 * i) for epoch in range(EPOCHS)), config=config)
        for i, config in enumerate(configs)
    ]
    write_page(runs[:1], place / "one.html")
    write_page(runs, place / "several.html")
    return {"one": place / "one.html", "several": place / "several.html"}


class Watched:
    """A page, and what it said or asked for while it was open."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = path.as_uri()
        self.page.goto(self.address)

    def cells(self, title: str) -> list[float]:
        """The values of a heat map's cells, row by row from layer 1."""
        found = self.panel(title).locator("rect.cell")
        return [float(value) for value in found.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]

    def panel(self, title: str) -> Any:
        return self.page.locator("figure", has=self.page.get_by_text(title, exact=True)).locator("visible=true").last

    def close(self) -> None:
        self.context.close()
        assert not self.said
        assert [url for url in self.asked if url != self.address and not url.startswith("data:")] == []


def flat(epoch: int) -> list[float]:
    return [value for row in measured(epoch).similarity["cosine"] for value in row]


def test_the_slider_changes_the_drawn_values_and_the_table(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    page = watched.page
    slider = page.get_by_role("slider", name="Epoch")
    assert slider.get_attribute("aria-valuetext") == "epoch 3, step 40"
    assert watched.cells("cosine similarity, layer by layer") == flat(3)
    path = watched.panel("Accuracy by layer").locator("path.curve:not(.faint)").first.get_attribute("d")
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "epoch 0, step 10"
    assert watched.cells("cosine similarity, layer by layer") == flat(0)
    assert watched.panel("Accuracy by layer").locator("path.curve:not(.faint)").first.get_attribute("d") != path
    page.keyboard.press("ArrowRight")
    assert watched.cells("cosine similarity, layer by layer") == flat(1)
    row = page.locator(".numbers tbody tr").nth(1)
    assert row.locator("td").all_text_contents() == ["0.450", "1.125", "0.600", "0.600", "1"]
    assert page.locator(".numbers caption").text_content() == "Epoch 1, step 20, 80 samples"
    watched.close()


def test_curves_of_what_was_asked_for_besides(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])

    def drawn(title: str) -> list[float]:
        marks = watched.panel(title).locator("g.mark")
        return [float(value) for value in marks.evaluate_all("marks => marks.map(mark => mark.dataset.value)")]

    earlier = "linear CKA of each layer to earlier epochs"
    assert drawn(earlier) == pytest.approx([0.6, 0.6, 0.5])
    assert drawn("Samples for which it rises, step by step") == pytest.approx([0.55, 0.75] * 2)
    assert drawn("Neural collapse by layer, NC1") == pytest.approx([2.0, 1.0, 0.2])
    to_last = watched.panel("Similarity to the last layer")
    assert to_last.locator("path.band").count() == 1, "of the measure that has an interval"
    to_last.locator("> svg").focus()
    for _ in range(2):
        watched.page.keyboard.press("ArrowRight")
    assert to_last.locator("output").text_content() == (
        "cosine similarity of layer 2 to the last: 0.400, interval 0.350 to 0.450"
    )
    watched.page.get_by_role("slider", name="Epoch").fill("0")
    assert watched.panel(earlier).locator("g.mark").count() == 0, "nothing lies before the first epoch"
    assert drawn("Samples for which it rises, step by step") == pytest.approx([0.25, 0.75] * 2)
    watched.close()


def test_a_colour_means_the_same_value_in_every_epoch(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    slider = watched.page.get_by_role("slider", name="Epoch")
    colors: dict[float, set[str]] = {}
    for epoch in range(EPOCHS):
        slider.fill(str(epoch))
        found = watched.panel("cosine similarity, layer by layer").locator("rect.cell")
        for value, color in found.evaluate_all("all => all.map(c => [c.dataset.value, c.getAttribute('fill')])"):
            colors.setdefault(float(value), set()).add(color)
    assert all(len(each) == 1 for each in colors.values())
    assert len({color for each in colors.values() for color in each}) == len(colors) > EPOCHS
    watched.close()


def test_drawings_are_read_by_keyboard_and_pointer(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    map_panel = watched.panel("cosine similarity, layer by layer")
    readout = map_panel.locator("output")
    map_panel.locator("> svg").focus()
    for key, said in (
        ("ArrowRight", "Layers 1 and 1: 1.000"),
        ("ArrowRight", "Layers 1 and 2: 0.400"),
        ("ArrowUp", "Layers 2 and 2: 1.000"),
        ("End", "Layers 2 and 3: 0.400"),
    ):
        watched.page.keyboard.press(key)
        assert readout.text_content() == said
    watched.page.get_by_role("slider", name="Epoch").focus()
    assert "Layers" not in (readout.text_content() or "")
    map_panel.locator("rect.cell").nth(2).hover()
    assert readout.text_content() == "Layers 1 and 3: 0.200"
    curve = watched.panel("Early exit: accuracy against layers spent")
    curve.locator("g.mark").nth(2).hover()
    said = "confidence, epoch 3, nobody leaves early: accuracy 0.800 at 3.00 layers"
    assert curve.locator("output").text_content() == said
    watched.close()


def test_everything_that_takes_the_focus_has_a_name(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["several"])
    page = watched.page
    assert page.get_by_role("combobox", name="Run").count() == 1
    assert page.get_by_role("button", name="Play the epochs").count() == 1
    assert page.get_by_role("slider", name="Epoch").count() == 1
    names = page.locator("svg[tabindex]").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert len(names) > 10
    assert all(name and "Arrow keys" in name for name in names)
    assert page.locator("svg:not([tabindex]):not([aria-hidden])").count() == 0
    watched.close()


def test_the_play_button_runs_to_the_last_epoch(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    page = watched.page
    page.get_by_role("button", name="Play the epochs").click()
    assert page.get_by_role("button", name="Pause").count() == 1
    page.get_by_role("button", name="Play the epochs").wait_for()  # it has stopped by itself
    assert page.get_by_role("slider", name="Epoch").input_value() == str(EPOCHS - 1)
    watched.close()


def test_several_runs_show_means_with_bands_and_one_run_at_a_time(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["several"])
    page = watched.page
    comparison = page.locator("#comparison figure").first
    assert comparison.locator("path.band").count() == 1  # two runs of a; the other experiment has one
    assert comparison.locator("li").all_text_contents() == ["a: mean of 2 runs, 95 % interval", f"{HOSTILE}: one run"]
    comparison.locator("g.mark").first.hover()
    assert re.fullmatch(
        r"a, layer 1: 0\.510, 95 % interval 0\.383 to 0\.637 \(2 runs\)", comparison.locator("output").text_content()
    )
    assert page.locator("section.run:visible h2").all_text_contents() == ["a (x0)"]
    page.get_by_role("combobox", name="Run").select_option(index=2)
    assert page.locator("section.run:visible h2").all_text_contents() == [HOSTILE]
    assert watched.panel(f"{HOSTILE}, layer by layer").count() == 1
    assert page.locator("img").count() == 0
    watched.close()


def test_axes_end_where_values_do_however_wide_the_interval(browser: Any, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"x{seed}", measured(0, 0.4 * seed), config=f"experiment: a\nseed_everything: {seed}\n")
        for seed in range(2)
    ]
    write_page(runs, tmp_path / "wide.html")
    watched = Watched(browser, tmp_path / "wide.html")
    comparison = watched.page.locator("#comparison figure").first
    comparison.locator("g.mark").first.hover()
    assert "interval −2.141 to 2.941" in comparison.locator("output").text_content()  # 0.4 ± 12.706 · 0.2
    ticks = comparison.locator("svg text").evaluate_all("all => all.map(one => one.textContent)")
    shares = [float(tick) for tick in ticks if re.fullmatch(r"0|0\.\d+|1|-.*", tick)]
    assert (min(shares), max(shares)) == (0, 1)
    assert comparison.locator("path.band").count() == 1
    watched.close()


def test_the_policy_stops_what_would_leave_the_page(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    outcome = watched.page.evaluate("fetch('https://example.org/').then(() => 'left', error => error.name)")
    assert outcome == "TypeError"
    assert any("Content Security Policy" in said for said in watched.said)  # the control: what is said is heard
    watched.context.close()


def test_many_kept_epochs_and_many_numbers(browser: Any, tmp_path: Path) -> None:
    """First, middle and last of the kept epochs, as of layers; and an axis over more numbers than a call may have."""
    earlier = {str(epoch): [0.1 * epoch, 0.5, 1.0] for epoch in range(9)}
    kept = [record(epoch, LAYERS, similarity_to_epoch={"cka": earlier} if epoch == 9 else {}) for epoch in (0, 9)]
    write_page([make_run(tmp_path / "kept", *kept)], tmp_path / "kept.html")
    watched = Watched(browser, tmp_path / "kept.html")
    panel = watched.panel("linear CKA of each layer to earlier epochs")
    assert panel.locator("ul.legend li").all_text_contents() == ["to epoch 0", "to epoch 4", "to epoch 8"]
    assert panel.locator("path.curve:not(.key path)").count() == 3
    assert panel.locator("output").text_content() == "Epoch 9 against 3 of 9 earlier"
    axis = watched.page.evaluate("spread(Array.from({ length: 300000 }, (_, place) => place / 300000))")
    assert (axis["low"], axis["high"]) == (0, 1)
    watched.close()


def test_accuracies_and_perplexities_fill_their_axes(browser: Any, tmp_path: Path) -> None:
    def gpt(epoch: int) -> LayerRecord:
        return record(epoch, 2, unit="tokens", accuracy=[0.28, 0.31], loss=[math.log(3e6), math.log(8.0)])

    write_page([make_run(tmp_path / "gpt", gpt(0), gpt(1))], tmp_path / "gpt.html")
    watched = Watched(browser, tmp_path / "gpt.html")

    def ticks(title: str) -> list[str]:
        left = watched.panel(title).locator('> svg > text[text-anchor="end"]')
        return left.evaluate_all("all => all.map(one => one.textContent)")  # type: ignore[no-any-return]

    assert [float(tick) for tick in ticks("Accuracy by layer")] == pytest.approx([0.28, 0.29, 0.3, 0.31])
    assert ticks("Perplexity by layer") == ["1", "10", "100", "1000", "10000", "1e+5", "1e+6", "1e+7"]
    marks = watched.panel("Perplexity by layer").locator("g.mark > *")
    heights = [float(one) for one in marks.evaluate_all("all => all.map(one => one.getAttribute('cy'))")]
    up = [math.log10(3e6) / 7, math.log10(8.0) / 7]
    assert heights == pytest.approx([214 - share * 204 for share in up], abs=0.01)
    watched.close()


def test_runs_of_one_layer_one_epoch_or_hardly_any_measure_are_drawn(browser: Any, tmp_path: Path) -> None:
    write_page([make_run(tmp_path / "x1", record(0, 1))], tmp_path / "least.html")
    least = Watched(browser, tmp_path / "least.html")
    assert least.cells("cosine similarity, layer by layer") == [1.0]
    assert least.page.get_by_role("slider", name="Epoch").is_disabled()
    least.close()
    changing = [record(0, accuracy=None), record(1, similarity={}, loss=[math.nan, 0.5]), record(2)]
    write_page([make_run(tmp_path / "x2", *changing)], tmp_path / "changing.html")
    watched = Watched(browser, tmp_path / "changing.html")
    row = watched.page.locator(".numbers tbody tr").first.locator("td")
    figures = watched.page.locator("figure:visible")
    assert figures.count() == 10
    watched.page.get_by_role("slider", name="Epoch").fill("1")
    assert row.all_text_contents() == ["0.367", "nan", "", "", "79"]
    assert figures.count() == 6  # what has no numbers in this epoch is not there
    watched.page.get_by_role("slider", name="Epoch").fill("0")
    assert row.all_text_contents() == ["", "2.250", "0.091", "0.091", "79"]
    assert figures.count() == 8
    watched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_and_fits_a_phone(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    watched = Watched(
        browser, pages["several"], viewport={"width": 360, "height": 740}, is_mobile=True, color_scheme=scheme
    )
    assert watched.page.evaluate("document.documentElement.scrollWidth") == 360
    sizes = watched.page.locator("figure > svg > text:visible").evaluate_all(
        "all => all.map(t => t.getScreenCTM().a * parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(sizes) >= 9  # CSS pixels
    for selector in ("p.lead", ".readout", "dt", "dd", "figcaption", "figure > svg > text.axis"):
        assert contrast(watched.page.locator(selector).locator("visible=true").first) >= 4.5  # WCAG AA
    watched.close()


def contrast(found: Any) -> float:
    """WCAG 2.2, of an element's text and of the first painted ground behind it."""
    pair = found.evaluate(
        """(node) => {
          const style = getComputedStyle(node);
          const ink = node instanceof SVGElement ? style.fill : style.color;
          let ground = node;
          while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
          return [ink, getComputedStyle(ground).backgroundColor];
        }"""
    )
    light, dark = sorted(luminance([int(part) for part in re.findall(r"\d+", color)[:3]]) for color in pair)[::-1]
    return (light + 0.05) / (dark + 0.05)


def luminance(color: list[int]) -> float:
    linear = [part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
