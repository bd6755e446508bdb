"""Models inside installed packages, by name."""

from pathlib import Path

import pytest

from layersim.errors import UserError
from layersim.installed_packages import model_name


def test_a_folder_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_models" / "small" / "v1"
    folder.mkdir(parents=True)
    (tmp_path / "some_models" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_name("package:some_models/small/v1") == str(folder)
    with pytest.raises(UserError, match="no folder 'large'"):
        model_name("package:some_models/large")


def test_other_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert model_name("bert-base-uncased") == "bert-base-uncased"
    assert model_name("~/model") == str(tmp_path / "model")
    assert model_name("~/none") == "~/none"


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(UserError, match="pip install no-such-models"):
        model_name("package:no_such_models/small")
