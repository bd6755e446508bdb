"""`layersim dashboard ENTITY/PROJECT`: a W&B workspace and a report that show what layersim logs, as code."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layersim.errors import UserError, as_user_error

OBJECTIVE = "model.objective.class_path.value"
"""The configuration's key that runs are grouped by. W&B holds our keys flat, dots and all, which `.value` at the end
tells the panels; they would look for a nest of sections otherwise."""
_SWEPT = {
    "objective": OBJECTIVE,
    "layer weights": "model.objective.init_args.weights.value",
    "head": "model.head.class_path.value",
    "learning rate": "model.optimizer.init_args.lr.value",
}
_OF_RUNS = {
    "Accuracy of the last layer": "val/accuracy",
    "Perplexity of the last layer": "val/perplexity",
    "Loss": "val/loss",
    "Effective depth": "val/effective_depth",
    "Saturated early": "val/saturated_early",
    "Area under the exit curve": "val/exit_curve_area",
    "Accuracy at half the layers": "val/accuracy_at_half_layers",
}
_BY_LAYER = {
    "Accuracy by layer": "accuracy",
    "Perplexity by layer": "perplexity",
    "Loss by layer": "loss",
    "Cosine to the last layer": "cosine_to_last",
    "CKA to the last layer": "cka_to_last",
}
_PICTURES = (["val/cosine", "val/cka"], ["val/layer_accuracy", "val/saturation", "val/exit_curve"])
"""Side by side."""


def dashboard(project: str, *, dry_run: Path | None = None) -> None:
    """Make a W&B workspace and a report: layer curves by objective, heat maps, what mattered in sweeps.

    Args:
        project: ENTITY/PROJECT of W&B
        dry_run: write both to this file, as JSON, and ask no server

    Raises:
        UserError: no such name, wandb-workspaces is missing, a file that cannot be written, or what W&B refuses.
    """
    entity, slash, name = project.partition("/")
    if not (entity and slash and name) or "/" in name:
        raise UserError(f"expected ENTITY/PROJECT, as in the address of the project's page, got {project!r}.")
    if find_spec("wandb_workspaces") is None:
        raise UserError("A dashboard needs wandb-workspaces, not installed here: pip install 'layersim[dashboard]'.")
    both = boards(entity, name)
    if dry_run:
        sent = {kind: json.loads(one._to_model().model_dump_json(by_alias=True)) for kind, one in both.items()}
        with as_user_error(f"{dry_run} cannot be written", "Change --dry-run."):
            dry_run.write_text(json.dumps(sent, indent=2) + "\n", encoding="utf-8")
        print(f"Workspace and report: {dry_run}")
        return
    for kind, one in both.items():
        remedy = "Check the entity and the project, and `wandb login`; --dry-run writes it to a file."
        with as_user_error(f"W&B did not take the {kind}", remedy):
            one.save()
        print(f"{kind.capitalize()}: {one.url}")


def boards(entity: str, project: str) -> dict[str, Any]:
    """Of wandb-workspaces a `workspace` of four sections, curves of whole runs, curves by layer, heat maps side by side
    and sweeps; and a `report` of layer curves by objective, heat maps, and which settings mattered."""
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces.workspaces import Section, Workspace

    class FlatColumn(panels.ParallelCoordinatesPlotColumn):  # type: ignore[misc]
        """A setting by its flat key, which the library's own column takes for a nest of sections."""

        def _to_model(self) -> Any:
            column = super()._to_model()
            column.accessor = f"config:{self.metric.name}"
            return column

    of_runs = [panels.LinePlot(title=title, x="epoch", y=[metric]) for title, metric in _OF_RUNS.items()]
    by_layer = [
        panels.LinePlot(title=title, x="epoch", metric_regex=rf"^val/{name}/layer_\d+$")
        for title, name in _BY_LAYER.items()
    ]
    pictures = [panels.MediaBrowser(media_keys=keys, num_columns=len(keys)) for keys in _PICTURES]
    mattered = panels.ParameterImportancePlot(with_respect_to="val/accuracy")
    settings = [FlatColumn(metric=panels.Config(key), display_name=name) for name, key in _SWEPT.items()]
    accuracy = panels.ParallelCoordinatesPlotColumn(
        metric=panels.SummaryMetric("val/accuracy"), display_name="accuracy"
    )
    place = {"entity": entity, "project": project}
    workspace = Workspace(
        **place,
        name="layersim",
        sections=[
            Section(name="Runs", panels=of_runs, is_open=True),
            Section(name="Layers", panels=by_layer, is_open=True),
            Section(name="Heat maps and distributions", panels=pictures, is_open=True),
            Section(name="Sweeps", panels=[mattered, panels.ParallelCoordinatesPlot(columns=[*settings, accuracy])]),
        ],
    )
    # a run set that names no project is the report's own, and needs no server to be written down
    by_objective = panels.Runset(name="by objective", groupby=[f"config.{OBJECTIVE}"])
    every_run = panels.Runset(name="every run")
    report = panels.Report(
        **place,
        title="layersim: what each layer knows",
        description="Accuracy, loss and similarity of every layer, by objective.",
        blocks=[
            panels.H1("Layers, by objective"),
            panels.PanelGrid(runsets=[by_objective], panels=[*of_runs, *by_layer]),
            panels.H1("Heat maps"),
            panels.PanelGrid(runsets=[every_run], panels=pictures),
            panels.H1("Which settings mattered"),
            panels.PanelGrid(runsets=[every_run], panels=[mattered]),
        ],
    )
    return {"workspace": workspace, "report": report}
