"""MLflow, where it is installed: the numbers of `layers.jsonl`, the figures and the page."""

from pathlib import Path

import pytest

from layersim.__main__ import main
from tests import tiny
from tests.measured import measured

mlflow = pytest.importorskip("mlflow")


@pytest.mark.filterwarnings("ignore")  # its own
def test_mlflow_holds_what_the_run_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    flags = [flag for flag in tiny.FLAGS if "logger" not in flag]
    logger = ["--trainer.logger=lightning.pytorch.loggers.MLFlowLogger", f"--trainer.logger.tracking_uri={store}"]
    assert main(["fit", *flags, *logger]) == 0
    (directory,) = Path("runs/default").iterdir()
    (record,) = measured(directory)
    client = mlflow.MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([found.experiment_id for found in client.search_experiments()])
    for layer, accuracy in enumerate(record["accuracy"], start=1):
        assert run.data.metrics[f"val/accuracy/layer_{layer:02d}"] == pytest.approx(accuracy)
    assert run.data.params["data.class_path"] == "layersim.data.Digits"
    kept = {found.path for found in client.list_artifacts(run.info.run_id)}
    assert "report.html" in kept
    figures = {Path(found.path).name for found in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {path.name for path in (directory / "figures").iterdir()}
