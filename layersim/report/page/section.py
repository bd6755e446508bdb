"""One run's part of the page: what it was, its numbers as a table, its configuration and environment.

All of it can be read without the script, which adds the drawings and lets the table follow the slider.
"""

from html import escape
from typing import Any

from layersim.report.configuration import below, class_of, init_args, seed_of
from layersim.report.environment import environment, read_environment
from layersim.report.exits import ExitReport
from layersim.report.numbers import three
from layersim.report.page.markup import facts, folded, notes, preformatted, table, worth
from layersim.report.page.run_page import RunPage
from layersim.report.quantity import single_numbers
from layersim.report.records import LayerRecord
from layersim.report.table import layer_cells


def section(number: int, heading: str, page: RunPage, record: LayerRecord) -> str:
    """The run's HTML, at one record."""
    parts = [
        f'<section class="run" id="run-{number}" aria-labelledby="run-{number}-name">',
        f'<h2 id="run-{number}-name">{escape(heading)}</h2>',
        notes(page.notices),
        facts(summary(page, record)),
        '<div class="panels"></div>',
        folded("Numbers by layer", f'<div class="numbers">{table(_heading(record), *layer_numbers(record))}</div>'),
        "" if page.exits is None else folded("Early exit and parameters", facts(_exit_facts(page.exits))),
        folded("Configuration (config.yaml)", preformatted(page.config_text)) if page.config_text else "",
        folded("Environment", _environment(page)),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def summary(page: RunPage, record: LayerRecord) -> dict[str, str]:
    """What the run was and how it ended, by name; what is not known is empty."""
    model = below(page.config, "model")
    told = {
        "Objective": _component(model.get("objective")),
        "Head": _component(model.get("head")),
        "Backbone": _component(model.get("backbone"), "name", "name_or_path", "task"),
        "Data": _component(page.config.get("data"), "path", "name"),
        "Optimizer": _component(model.get("optimizer"), "lr", "weight_decay"),
        "Seed": seed_of(page.config),
        "Layers": str(record.layers),
        record.unit.capitalize(): f"{record.samples:,}",
        "Measured at": f"epoch {record.epoch}, step {record.step:,} ({record.stage})",
        "Run": page.run.directory.name,
    }
    told |= worth(record)
    numbers = single_numbers(record.quantities, record.layers, record.samples)
    told |= {name[:1].upper() + name[1:]: value for name, value in numbers.items()}
    for name, quantity in record.quantities.items():
        if quantity.axes and quantity.options:
            told[f"How {name} was computed"] = ", ".join(f"{key} {value}" for key, value in quantity.options.items())
    return told


def layer_numbers(record: LayerRecord) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, one a layer, of all that was recorded by layer."""
    columns = layer_cells(record)
    rows = [[str(layer + 1), *(cells[layer] for cells in columns.values())] for layer in range(record.layers)]
    return ["layer", *columns], rows


def _heading(record: LayerRecord) -> str:
    return f"Epoch {record.epoch}, step {record.step}, {record.samples:,} {record.unit}"


def _exit_facts(report: ExitReport) -> dict[str, str]:
    everybody_stays = "none: every sample goes through all layers"
    named = {
        "Policy": report.policy,
        "Threshold": everybody_stays if report.threshold is None else str(report.threshold),
        "Mean exit layer": f"{report.mean_exit_layer:.2f} of {report.layers}",
        "Gain in layers": f"{report.layer_gain:.2f} ×",
        "Gain in time": "" if report.wall_gain is None else f"{report.wall_gain:.2f} × at batch {report.batch_size}",
        "Accuracy with exits": three(report.accuracy),
        "Accuracy of the last layer": three(report.full_accuracy),
        "Samples": f"{report.samples:,}",
        "Device": report.device,
    }
    if report.promise is not None:
        named["Promise"] = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report.promise.items())
    parameters = report.parameters
    named["Parameters"] = f"{parameters['model']:,.0f}"
    named["Of them in the head"] = f"{parameters['head']:,.0f}"
    named["Parameters with a head for each layer"] = f"{parameters['separate_heads']:,.0f}"
    named["Saved by one head for all layers"] = f"{parameters['share_saved']:.1%}"
    return named


def _environment(page: RunPage) -> str:
    """What the run wrote down of its environment, else what is installed as the page is written, marked so."""
    recorded = read_environment(page.run.directory)
    if recorded is None:
        note = "The run did not record its environment. This is the one in which the page was written:"
        return f"<p>{note}</p>{facts(environment())}"
    return facts({str(name): _counted(value) for name, value in recorded.items()})


def _counted(value: Any) -> str:
    """A value as it is; of several numbers each with its name."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{name.replace('_', ' ')} {format(number, ',.3g' if isinstance(number, float) else ',')}"
        for name, number in value.items()
    )


def _component(value: Any, *shown: str) -> str:
    """A class and its options as the configuration names them: those in `shown`, or all that are set."""
    options = {
        name: option for name, option in init_args(value).items() if option is not None and (not shown or name in shown)
    }
    written = ", ".join(f"{name} {option}" for name, option in options.items())
    return f"{class_of(value)}{f' ({written})' if written else ''}"
