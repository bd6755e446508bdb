"""The GraphQL operations that W&B's clients ask for, by name: (store, variables, address) -> data."""

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from tests.wandb_server.store import ENTITY, Json, Run, Store, Sweep

PROJECT = {"id": "project-id", "entity": {"id": "entity-id", "name": ENTITY}}


def name_of(query: str) -> str:
    """`mutation UpsertBucket (…` is `UpsertBucket`."""
    found = re.match(r"\s*(?:query|mutation)\s+(\w+)", query)
    return found.group(1) if found else query


def answer(store: Store, operation: str, variables: Json, address: str) -> Json:
    """The `data` of the reply; an operation that is not known has none, as with a server that is older than the client.

    Raises:
        KeyError: the operation is not known.
    """
    store.operations.append(operation)
    return OPERATIONS[operation](store, variables, address)


def viewer(store: Store, variables: Json, address: str) -> Json:
    user = {"id": "user-id", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "admin": False}
    return {"viewer": user | {"teams": {"edges": []}}}


def features(store: Store, variables: Json, address: str) -> Json:
    return {"serverInfo": {"features": []}}


def organization(store: Store, variables: Json, address: str) -> Json:
    return {"entity": {"organization": None}}


def _bucket(run: Run) -> Json:
    history = [line for line in run.lines.get("wandb-history.jsonl", []) if line]
    return {
        "id": f"id-of-{run.name}",
        "name": run.name,
        "displayName": run.display_name,
        "description": None,
        "config": json.dumps(run.config),
        "sweepName": run.sweep,
        "project": PROJECT | {"name": run.project},
        "historyLineCount": len(history),
        "summaryMetrics": json.dumps(run.summary),
        "logLineCount": len(run.lines.get("output.log", [])),
        "eventsLineCount": len(run.lines.get("wandb-events.jsonl", [])),
        "historyTail": json.dumps(history[-1:]),
        "eventsTail": "[]",
        "tags": [],
        "notes": None,
        "wandbConfig": json.dumps({"t": (run.config.get("_wandb") or {}).get("value", {}).get("t", {})}),
    }


def upsert_run(store: Store, variables: Json, address: str) -> Json:
    name = variables.get("name") or variables["id"].removeprefix("id-of-")
    inserted = name not in store.runs
    run = store.runs.setdefault(name, Run(name, variables.get("project") or "uncategorized"))
    if run.state == "pending":
        run.state = "running"
    run.display_name = variables.get("displayName") or run.display_name
    run.sweep = variables.get("sweep") or run.sweep
    if variables.get("config"):
        run.config = json.loads(variables["config"])
    return {"upsertBucket": {"bucket": _bucket(run), "inserted": inserted}}


def resume_status(store: Store, variables: Json, address: str) -> Json:
    run = store.runs.get(variables["name"])
    return {"model": PROJECT | {"name": variables["project"], "bucket": _bucket(run) if run else None}}


def run_files(store: Store, variables: Json, address: str) -> Json:
    place = f"{address}/storage/{variables['run']}"
    files = [{"name": name, "uploadUrl": f"{place}/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": f"id-of-{variables['run']}", "uploadHeaders": [], "files": files}}


def upsert_sweep(store: Store, variables: Json, address: str) -> Json:
    name = f"sweep{len(store.sweeps) + 1}"
    project = variables["projectName"]
    store.sweeps[name] = Sweep(name, project, yaml.safe_load(variables["config"]), variables["config"])
    sweep = {"name": name, "project": PROJECT | {"name": project}}
    return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}


def sweep_with_runs(store: Store, variables: Json, address: str) -> Json:
    sweep = store.sweeps.get(variables["sweep"])
    if sweep is None:
        return {"project": None}
    told = {"id": sweep.name, "name": sweep.name, "state": "RUNNING", "config": sweep.text, "runs": {"edges": []}}
    return {"project": {"sweep": told}}


def create_agent(store: Store, variables: Json, address: str) -> Json:
    sweep = store.sweeps[variables["sweep"]]
    sweep.agents.append(f"{sweep.name}:agent{len(sweep.agents) + 1}")
    return {"createAgent": {"agent": {"id": sweep.agents[-1]}}}


def heartbeat(store: Store, variables: Json, address: str) -> Json:
    """Hands an agent whose hands are empty its next trial, and bids it leave when there is none."""
    commands = []
    if not json.loads(variables["runState"]):
        sweep = store.sweeps[variables["id"].partition(":")[0]]
        trial = sweep.next_trial()
        command = {"type": "exit"}
        if trial is not None:
            run_id = f"{sweep.name}-trial{sweep.given}"
            # the real server has made the run when it hands the trial out
            store.runs[run_id] = Run(run_id, sweep.project, sweep=sweep.name, state="pending")
            args = {key: {"value": value} for key, value in trial.items()}
            command = {"type": "run", "run_id": run_id, "program": sweep.config.get("program"), "args": args}
        commands.append(command)
    return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}


def create_artifact(store: Store, variables: Json, address: str) -> Json:
    told = variables["input"]
    key = f"artifact{len(store.artifacts) + 1}"
    store.artifacts[key] = told | {"state": "PENDING"}
    artifact = {"id": key, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
    return {"createArtifact": {"artifact": artifact}}


def _manifest(address: str, key: str) -> Json:
    file = {"id": f"{key}-file", "uploadUrl": f"{address}/artifacts/{key}/manifest.json", "uploadHeaders": []}
    return {"artifactManifest": {"id": f"{key}-manifest", "file": file}}


def artifact_manifest(store: Store, variables: Json, address: str) -> Json:
    return {"createArtifactManifest": _manifest(address, variables["artifactID"])}


def update_manifest(store: Store, variables: Json, address: str) -> Json:
    return {"updateArtifactManifest": _manifest(address, variables["artifactManifestID"].removesuffix("-manifest"))}


def artifact_files(store: Store, variables: Json, address: str) -> Json:
    edges = []
    for file in variables["input"]["artifactFiles"]:
        key, name = file["artifactID"], file["name"]
        node = {"storagePath": f"{key}/{name}", "uploadUrl": f"{address}/artifacts/{key}/{name}", "uploadHeaders": []}
        edges.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": key}}})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def commit_artifact(store: Store, variables: Json, address: str) -> Json:
    artifact = store.artifacts[variables["artifactID"]]
    artifact["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": artifact["digest"]}}}


OPERATIONS: dict[str, Callable[[Store, Json, str], dict[str, Any]]] = {
    "Viewer": viewer,
    "GetViewer": viewer,
    "ServerFeaturesQuery": features,
    "OrganizationCoreWeaveOrganizationID": organization,
    "UpsertBucket": upsert_run,
    "RunResumeStatus": resume_status,
    "CreateRunFiles": run_files,
    "UpsertSweep": upsert_sweep,
    "SweepWithRuns": sweep_with_runs,
    "CreateAgent": create_agent,
    "Heartbeat": heartbeat,
    "CreateArtifact": create_artifact,
    "CreateArtifactManifest": artifact_manifest,
    "UpdateArtifactManifest": update_manifest,
    "CreateArtifactFiles": artifact_files,
    "CommitArtifact": commit_artifact,
}
