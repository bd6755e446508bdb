"""What has arrived at the stand-in, in plain lists and dicts for tests to read."""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

ENTITY = "somebody"


@dataclass
class Run:
    """One W&B run."""

    name: str
    """What the client calls its id."""
    project: str
    display_name: str | None = None
    sweep: str | None = None
    config: Json = field(default_factory=dict)
    """As the client sends it: each key with a `value`, and W&B's own under `_wandb`."""
    lines: dict[str, list[str | None]] = field(default_factory=dict)
    """The streamed files line by line, None where a line has not arrived (yet)."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    """The uploaded files by name."""
    state: str = "running"
    exit_code: int | None = None

    def take_stream(self, body: Json) -> None:
        """Takes in one request to `file_stream`: pieces of files, each with the line it begins at."""
        for name, piece in (body.get("files") or {}).items():
            lines = self.lines.setdefault(name, [])
            if name == "wandb-summary.json":
                lines[:] = piece["content"]  # the latest whole summary
                continue
            end = piece["offset"] + len(piece["content"])
            lines.extend([None] * (end - len(lines)))
            lines[piece["offset"] : end] = piece["content"]
        if body.get("complete"):
            self.exit_code = body.get("exitcode", 0)
            self.state = "finished" if self.exit_code == 0 else "failed"

    @property
    def history(self) -> list[Json]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", []) if line]

    @property
    def summary(self) -> Json:
        lines = self.lines.get("wandb-summary.json") or ["{}"]
        return dict(json.loads(lines[-1] or "{}"))

    @property
    def settings(self) -> Json:
        """The configuration without W&B's own entry."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}

    @property
    def axes(self) -> dict[str, str | None]:
        """The metric that each metric is drawn against, by `define_metric`, globs under their own pattern."""
        defined = self.config["_wandb"]["value"].get("m", [])  # "1" name, "2" glob, "4" axis, "5" axis by place
        axes = {}
        for metric in defined:
            axis = metric.get("4") or (defined[metric["5"] - 1]["1"] if "5" in metric else None)
            axes[metric.get("1") or metric["2"]] = axis
        return axes


@dataclass
class Sweep:
    """One sweep. The stand-in draws a grid: each value of `values`, and the two ends of a range."""

    name: str
    project: str
    config: Json
    text: str
    agents: list[str] = field(default_factory=list)
    given: int = 0
    """How many trials have been handed out."""

    def next_trial(self) -> Json | None:
        parameters = self.config["parameters"]
        choices = [
            entry.get("values") or ([entry["min"], entry["max"]] if "min" in entry else [entry["value"]])
            for entry in parameters.values()
        ]
        combinations = list(itertools.product(*choices))
        if self.given == len(combinations):
            return None
        self.given += 1
        return dict(zip(parameters, combinations[self.given - 1], strict=True))


@dataclass
class Store:
    """All that a server has been told."""

    runs: dict[str, Run] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    artifacts: dict[str, Json] = field(default_factory=dict)
    artifact_files: dict[str, bytes] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    """The names of all GraphQL operations, in the order in which they came."""

    @property
    def only_run(self) -> Run:
        (run,) = self.runs.values()
        return run
