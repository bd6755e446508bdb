"""The page in a real browser: what moves, what is said, and that nothing leaves it.

Needs Chromium or Chrome on the PATH and the package playwright, whose own browsers are not used.
"""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layersim.report.page import write_page
from layersim.report.quantity import LAYER, Quantity, curve
from layersim.report.records import LayerRecord
from layersim.report.table import layer_cells
from tests.report.contrast import contrast
from tests.report.page_runs import HOSTILE, make_run, record

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE = 600_000  # ms, of a machine that does much else
EPOCHS = 4
LAYERS = 3
P = [[math.nan, 0.05, 0.15], [0.05, math.nan, 0.051], [0.15, 0.051, math.nan]]


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
    curve = {"threshold": [0.5, 0.9, None], "mean_exit_layer": [1.0, 2.0, 3.0], "accuracy": accuracy}
    matrix = [[1.0 if i == j else round(0.9 - 0.2 * abs(i - j) - 0.1 * epoch, 3) for j in range(3)] for i in range(3)]
    low, high = ([[value + end for value in row] for row in matrix] for end in (-0.05, 0.05))
    return record(
        epoch,
        LAYERS,
        accuracy=accuracy,
        exit_curve=curve,
        similarity={"cosine": matrix, HOSTILE: matrix},
        intervals={"cosine": {"confidence": 0.95, "low": low, "high": high}},
        nulls={"cosine": {"p": P, "p_family": P, "calibrated": matrix, "permutations": 19, "seed": 0}},
        to_epoch={"cka": {other: [0.9 - 0.1 * epoch, 0.6, 0.5] for other in range(epoch)}} if epoch else {},
        wobble=Quantity(values=[0.25 + 0.1 * epoch, 0.75], axes=("joint",), unit="share", ticks={"joint": [1.5, 2.5]}),
        heat=Quantity(values=30.0 + epoch, unit="°C"),
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
        self.settle()

    def settle(self) -> None:
        """Waits until all charts that can be seen are drawn, and drawn anew."""
        self.page.evaluate(
            """async () => {
              const seen = () => [...document.querySelectorAll("figure")].filter((one) => one.offsetParent);
              for (let left = 9000; !seen().every((one) => one.view); left -= 1) {
                if (!left) throw new Error("not drawn");
                await new Promise((later) => setTimeout(later, 20));
              }
              await Promise.all(seen().map((one) => one.view.runAsync()));
            }"""
        )

    def panel(self, title: str) -> Any:
        return self.page.locator("figure", has=self.page.get_by_text(title, exact=True)).locator("visible=true").last

    def rows(self, title: str, key: str = "value", name: str = "now") -> list[Any]:
        """What a chart shows, as Vega has it."""
        self.settle()
        found = self.panel(title).evaluate("(one, name) => one.view.data(name)", name)
        return [row[key] for row in found]

    def marks(self, title: str, kind: str) -> Any:
        """What a chart has drawn: paths of `mark-line` and the like."""
        self.settle()
        return self.panel(title).locator(f"g.{kind}.role-mark > *")

    def close(self) -> None:
        self.context.close()
        assert not self.said
        assert [url for url in self.asked if url != self.address and not url.startswith(("data:", "blob:"))] == []


COSINE = "Cosine similarity, layer by layer"


def flat(epoch: int) -> list[float]:
    return [value for row in measured(epoch).values("cosine") for value in row]


def test_the_slider_changes_the_drawn_values_and_the_table(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    page = watched.page
    slider = page.get_by_role("slider", name="Epoch")
    assert slider.get_attribute("aria-valuetext") == "epoch 3, step 40"
    assert watched.rows(COSINE) == flat(3)
    fills = watched.marks(COSINE, "mark-rect").first.get_attribute("fill"), watched.marks(COSINE, "mark-rect").nth(1)
    colors = [each if isinstance(each, str) else each.get_attribute("fill") for each in fills]
    path = watched.marks("Accuracy by layer", "mark-line").last.get_attribute("d")
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "epoch 0, step 10"
    assert watched.rows(COSINE) == flat(0)
    assert watched.marks(COSINE, "mark-rect").first.get_attribute("fill") == colors[0], "1.0 in every epoch"
    assert watched.marks(COSINE, "mark-rect").nth(1).get_attribute("fill") != colors[1]
    assert watched.marks("Accuracy by layer", "mark-line").last.get_attribute("d") != path
    assert set(watched.rows("Accuracy by layer", "group", "others")) == {1, 2, 3}
    page.keyboard.press("ArrowRight")
    assert watched.rows(COSINE) == flat(1)
    row = page.locator(".numbers tbody tr").nth(1)
    assert row.locator("td").all_text_contents() == ["0.450", "1.125", "1.3%", "0.600", "0.600"]
    assert page.locator(".numbers caption").text_content() == "Epoch 1, step 20, 80 samples"
    watched.close()


def test_columns_are_told_apart_by_the_quantitys_own_name(browser: Any, tmp_path: Path) -> None:
    def alike(epoch: int, *names: str) -> LayerRecord:
        told = {name: curve([place + 0.1 * epoch, 0.5], label="x") for place, name in enumerate("ab") if name in names}
        return record(epoch, accuracy=None, loss=None, saturation=None, similarity={}, **told)

    run = make_run(tmp_path / "run", alike(0, "a", "b"), alike(1, "b"), alike(2, "a", "b"))
    write_page([run], tmp_path / "page.html")
    watched = Watched(browser, tmp_path / "page.html")
    assert watched.page.locator(".numbers thead th").all_text_contents() == ["layer", "x", "b"]
    row = watched.page.locator(".numbers tbody tr").first.locator("td")
    assert row.all_text_contents() == ["0.200", "1.200"]
    for epoch, cells in (("0", ["0.000", "1.000"]), ("1", ["", "1.100"]), ("2", ["0.200", "1.200"])):
        watched.page.get_by_role("slider", name="Epoch").fill(epoch)
        assert row.all_text_contents() == cells
    watched.close()
    other = make_run(tmp_path / "other", alike(2, "a", "b"), config="experiment: other\n")
    write_page([run, other], tmp_path / "two.html")
    both = Watched(browser, tmp_path / "two.html")
    titles = both.page.locator("#comparison figcaption").all_text_contents()
    assert titles == ["X by layer", "B by layer"]
    both.close()


def test_the_script_says_a_value_as_the_page_does_without_it(browser: Any, tmp_path: Path) -> None:
    values = [0.7, -0.126, 0.0, 3.0, 2.5, 12345.7, -3e6, 1e12, math.nan]
    units = {"a": "share", "b": LAYER, "c": "nats", "d": ""}
    nothing = {"accuracy": None, "loss": None, "saturation": None, "similarity": {}}
    shown = record(0, len(values), **nothing, **{name: curve(values, unit=unit) for name, unit in units.items()})
    write_page([make_run(tmp_path / "run", shown)], tmp_path / "page.html")
    watched = Watched(browser, tmp_path / "page.html")
    cells = watched.page.locator(".numbers tbody td").all_text_contents()
    assert cells == [cell for row in zip(*layer_cells(shown).values(), strict=True) for cell in row]
    watched.close()


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("share", "70.0%, interval 65.0% to 75.0%"),
        (LAYER, "0.70 of 2, interval 0.65 of 2 to 0.75 of 2"),
        ("samples", "0.9%, interval 0.8% to 0.9%"),
        ("nats", "0.700, interval 0.650 to 0.750"),
    ],
)
def test_an_interval_has_the_unit_of_what_is_between(browser: Any, tmp_path: Path, unit: str, said: str) -> None:
    ends = {"confidence": 0.95, "low": [0.65] * 2, "high": [0.75] * 2}
    own = curve([0.7] * 2, label="own", unit=unit, interval=ends)
    write_page([make_run(tmp_path / "run", record(0, own=own))], tmp_path / "page.html")
    watched = Watched(browser, tmp_path / "page.html")
    watched.settle()
    (told_,) = (
        row["told"]
        for row in watched.page.locator("figure:visible", has_text="Own by layer").evaluate(
            "one => one.view.data('now')"
        )
        if row["x"] == 1
    )
    assert told_ == f"layer 1: {said}"
    watched.close()


def test_every_quantity_is_drawn_also_one_nobody_has_heard_of(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    assert watched.rows("Wobble by joint") == pytest.approx([0.55, 0.75])
    assert watched.rows("Wobble by joint", "x") == [1.5, 2.5]
    assert watched.rows("Heat over training") == [30, 31, 32, 33]
    assert watched.rows("Heat over training", "x", "time") == [3]
    assert watched.rows("Accuracy over training", "told")[4] == "layer 2, epoch 1: 0.450"
    dots = watched.marks("Saturated here by layer, and up to it", "mark-symbol")
    up = "all => all.map(dot => dot.closest('figure').view.scale('y').invert(dot.transform.baseVal[0].matrix.f))"
    assert dots.evaluate_all(up) == pytest.approx([78 / 80, 79 / 80, 1])
    last = "Cosine similarity to the last layer"
    assert watched.marks(last, "mark-area").count() == 1
    assert watched.rows(last, "told")[1] == (
        "layer 2: 0.400, interval 0.350 to 0.450, family-wise p 0.051, calibrated 0.400"
    )
    assert watched.rows("Cka to epoch by epoch and layer", "y") == [*"000111222"]
    watched.page.get_by_role("slider", name="Epoch").fill("1")
    assert watched.rows("Cka to epoch by epoch and layer", "y") == [*"000"]
    watched.page.get_by_role("slider", name="Epoch").fill("0")
    assert watched.panel("Cka to epoch by epoch and layer").count() == 0, "nothing lies before the first epoch"
    assert watched.rows("Wobble by joint") == pytest.approx([0.25, 0.75])
    watched.close()


def test_what_chance_explains_is_hatched_and_told(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    chance = [False, False, True, False, False, True, True, True, False]
    assert watched.rows(COSINE, "chance") == chance
    strokes = "all => all.map(one => one.getAttribute('d').split('M').length - 1)"
    assert watched.marks(COSINE, "mark-symbol").evaluate_all(strokes).count(8) == 4
    assert watched.rows(COSINE, "told")[2] == "layer 1, layer 3: 0.200, family-wise p 0.150, calibrated 0.200"
    assert watched.rows(COSINE, "told")[0] == "layer 1, layer 1: 1.000"
    shown = watched.panel(COSINE).locator(".note")
    assert shown.text_content() == "Hatched: no more than chance, family-wise p > 0.05"
    assert watched.panel("Accuracy by layer").locator(".note").is_hidden()
    facts = watched.page.locator("section.run dt", has_text="cosine similarity no more than chance").locator("xpath=..")
    assert facts.locator("dd").text_content() == "2 of 3 pairs (family-wise p > 0.05, 19 permutations)"
    watched.close()


def test_the_colours_range_is_chosen_for_all_heat_maps(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])

    def ends(title: str) -> list[float]:
        watched.settle()
        return watched.panel(title).evaluate("one => one.view.scale('color').domain()")  # type: ignore[no-any-return]

    assert [ends(COSINE), ends("Cka to epoch by epoch and layer")] == [[0, 1], [0, 1]]
    before = watched.marks(COSINE, "mark-rect").nth(1).get_attribute("fill")
    watched.page.get_by_role("combobox", name="Colours").select_option("data")
    assert [ends(COSINE), ends("Cka to epoch by epoch and layer")] == [[0.2, 1], [0.5, 0.8]]
    assert watched.marks(COSINE, "mark-rect").nth(1).get_attribute("fill") != before
    watched.close()


def test_charts_are_read_by_keyboard_and_pointer(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    panel = watched.panel(COSINE)
    readout = panel.locator("output")
    panel.locator("svg.marks").focus()
    for key, said in (
        ("ArrowRight", "layer 1, layer 1: 1.000"),
        ("ArrowRight", "layer 1, layer 2: 0.400, family-wise p 0.050, calibrated 0.400"),
        ("ArrowUp", "layer 2, layer 2: 1.000"),
        ("End", "layer 2, layer 3: 0.400, family-wise p 0.051, calibrated 0.400"),
    ):
        watched.page.keyboard.press(key)
        assert readout.text_content() == said
    assert watched.marks(COSINE, "mark-rect").count() == 9 + 1, "the cursor"
    watched.page.get_by_role("slider", name="Epoch").focus()
    assert readout.text_content() == ""
    assert watched.marks(COSINE, "mark-rect").count() == 9
    watched.marks(COSINE, "mark-rect").nth(2).hover()
    tooltip = watched.page.locator("#vg-tooltip-element")
    assert tooltip.text_content() == "layer 1, layer 3: 0.200, family-wise p 0.150, calibrated 0.200"
    exits = "Accuracy with early exit by mean exit layer"
    watched.marks(exits, "mark-symbol").last.hover()
    assert tooltip.text_content() == "threshold none, mean exit layer 3: 0.800"
    watched.close()


def test_each_chart_is_saved_as_png_and_svg(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    panel = watched.panel(COSINE)
    panel.locator("details summary").click()
    for kind, begins in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        with watched.page.expect_download() as saved:
            panel.get_by_role("link", name=f"Save as {kind}").click()
        assert saved.value.suggested_filename == f"Cosine-similarity-layer-by-layer.{kind.lower()}"
        assert Path(saved.value.path()).read_bytes().startswith(begins)
    assert panel.get_by_role("link").count() == 2, "nothing that opens an editor on the network"
    watched.close()


def test_everything_that_takes_the_focus_has_a_name(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["several"])
    page = watched.page
    assert page.get_by_role("combobox", name="Run").count() == 1
    assert page.get_by_role("combobox", name="Colours").count() == 1
    assert page.get_by_role("button", name="Play the epochs").count() == 1
    assert page.get_by_role("slider", name="Epoch").count() == 1
    names = page.locator("svg.marks").evaluate_all("all => all.map(one => one.tabIndex === 0 && one.ariaLabel)")
    assert len(names) > 10
    assert all(name and "Arrow keys" in name for name in names)
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
    titles = page.locator("#comparison figcaption").all_text_contents()
    assert titles[:2] == ["Accuracy by layer", "Cosine similarity to the last layer"]
    assert titles[2:5] == [f"{COSINE}: {name}" for name in ("a (x0)", "a (x1)", HOSTILE)]
    comparison = page.locator("#comparison figure").first
    told = comparison.evaluate("one => one.view.data('now').map(row => row.told)")
    assert told[0] == "a, 2 runs, layer 1: 0.510, interval 0.383 to 0.637"
    assert told[3] == f"{HOSTILE}, layer 1: 0.540"
    assert page.locator("section.run:visible h2").all_text_contents() == ["a (x0)"]
    page.get_by_role("combobox", name="Run").select_option(index=2)
    watched.settle()
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
    (told, *_) = comparison.evaluate("one => one.view.data('now').map(row => row.told)")
    assert told.endswith("interval -2.141 to 2.941")  # 0.4 ± 12.706 · 0.2
    assert comparison.evaluate("one => one.view.scale('y').domain()") == [0, 1]
    watched.close()


def test_the_policy_stops_what_would_leave_the_page(browser: Any, pages: dict[str, Path]) -> None:
    watched = Watched(browser, pages["one"])
    outcome = watched.page.evaluate("fetch('https://example.org/').then(() => 'left', error => error.name)")
    assert outcome == "TypeError"
    assert any("Content Security Policy" in said for said in watched.said)  # the control: what is said is heard
    watched.context.close()


def test_perplexities_are_drawn_in_logarithms(browser: Any, tmp_path: Path) -> None:
    def gpt(epoch: int) -> LayerRecord:
        return record(epoch, 2, unit="tokens", perplexity=[3e6, 8.0], accuracy=[0.28, 0.31])

    write_page([make_run(tmp_path / "gpt", gpt(0), gpt(1))], tmp_path / "gpt.html")
    watched = Watched(browser, tmp_path / "gpt.html")
    up = "one => [one.view.scale('y').type, ...one.view.scale('y').domain()]"
    assert watched.panel("Perplexity by layer").evaluate(up) == ["log", 8, 3e6]
    assert watched.panel("Accuracy by layer").evaluate(up)[0] == "linear"
    assert watched.rows("Perplexity by layer", "told")[0] == "layer 1: 3e+06"
    watched.close()


@pytest.mark.parametrize("layers", [12, 24, 48])
def test_numbers_stand_in_the_cells_that_have_room(browser: Any, tmp_path: Path, layers: int) -> None:
    write_page([make_run(tmp_path / "deep", record(0, layers))], tmp_path / "deep.html")
    watched = Watched(browser, tmp_path / "deep.html", viewport={"width": 1320, "height": 900})
    numbers = watched.marks(COSINE, "mark-text")
    assert numbers.count() == layers**2
    room = watched.marks(COSINE, "mark-rect").first.bounding_box()["width"]
    widest = numbers.first.bounding_box()
    assert numbers.first.text_content() == "1.00"
    assert widest["width"] < room
    assert widest["height"] > 8
    assert watched.marks("Linear CKA, layer by layer", "mark-text").count() == (layers**2 if layers == 12 else 0)
    watched.panel("Linear CKA, layer by layer").get_by_role("button").click()
    watched.page.wait_for_timeout(100)
    assert watched.marks("Linear CKA, layer by layer", "mark-text").count() == layers**2
    watched.close()


def test_runs_of_one_layer_one_epoch_or_hardly_any_measure_are_drawn(browser: Any, tmp_path: Path) -> None:
    write_page([make_run(tmp_path / "x1", record(0, 1))], tmp_path / "least.html")
    least = Watched(browser, tmp_path / "least.html")
    assert least.rows(COSINE) == [1.0]
    assert least.page.get_by_role("slider", name="Epoch").is_disabled()
    least.close()
    nothing = {"accuracy": None, "loss": None, "saturation": None, "similarity": {}}
    write_page([make_run(tmp_path / "x0", record(0, **nothing), record(1, **nothing))], tmp_path / "numbers.html")
    alone = Watched(browser, tmp_path / "numbers.html")
    alone.page.get_by_role("slider", name="Epoch").fill("0")
    assert alone.page.locator("output").first.text_content() == "epoch 0, step 10"
    assert alone.page.get_by_text("Numbers by layer").count() == 0
    alone.close()
    changing = [record(0, accuracy=None), record(1, similarity={}, loss=[math.nan, 0.5]), record(2)]
    write_page([make_run(tmp_path / "x2", *changing)], tmp_path / "changing.html")
    watched = Watched(browser, tmp_path / "changing.html")
    row = watched.page.locator(".numbers tbody tr").first.locator("td")
    figures = watched.page.locator("figure:visible")
    every = figures.count()
    watched.page.get_by_role("slider", name="Epoch").fill("1")
    assert row.all_text_contents() == ["0.367", "nan", "98.8%", "", ""]
    assert figures.count() == every - 4, "what has no numbers in this epoch is not there"
    watched.page.get_by_role("slider", name="Epoch").fill("0")
    assert row.all_text_contents() == ["", "2.250", "98.8%", "0.091", "0.091"]
    assert figures.count() == every - 1
    watched.settle()
    watched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_and_fits_a_phone(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    watched = Watched(
        browser, pages["several"], viewport={"width": 360, "height": 740}, is_mobile=True, color_scheme=scheme
    )
    assert watched.page.evaluate("document.documentElement.scrollWidth") == 360
    sizes = watched.page.locator("svg.marks text:visible").evaluate_all(
        """all => all.filter(one => one.textContent).map((one) => {
          const { a, b } = one.getScreenCTM();
          return Math.hypot(a, b) * parseFloat(getComputedStyle(one).fontSize);
        })"""
    )
    assert min(sizes) >= 9  # CSS pixels
    for selector in (
        "p.lead",
        "p.headline",
        "dt",
        "dd",
        "figcaption",
        "g.role-axis-label text",
        "g.role-axis-title text",
    ):
        assert contrast(watched.page.locator(selector).locator("visible=true").first) >= 4.5  # WCAG AA
    watched.close()
