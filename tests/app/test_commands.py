"""The commands beside serve and launch."""

import re
from pathlib import Path

import torch
from typer.testing import CliRunner

from tokenwire_service.cli import app


def test_env_names_versions_and_devices() -> None:
    result = CliRunner().invoke(app, ["env"])
    assert result.exit_code == 0
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.stdout.splitlines())
    assert facts["torch"] == torch.__version__
    assert facts["tokenwire-service"].startswith("0.")
    assert "usable of" in facts["cpu cores"]


def test_download_prints_where_the_weights_are(tiny_checkpoint: Path) -> None:
    result = CliRunner().invoke(app, ["download", str(tiny_checkpoint)])
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tiny_checkpoint / "model.safetensors")


def test_download_of_what_does_not_exist_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["download", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.stderr == f"tokenwire: error: {tmp_path}/none: no such directory\n"
