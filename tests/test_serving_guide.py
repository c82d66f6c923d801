"""What docs/serving.md says of commands, files and tolerances is so."""

import re
import shlex
from pathlib import Path

import tyro

from launch.cli import VERBS
from launch.export import ExportArgs
from launch.predict import PredictArgs
from trainer.serving.folder import FILES, MANIFEST
from trainer.serving.measure import tolerance

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "serving.md").read_text()
COMMANDS = re.findall(r"^farewell (.*?)(?:#.*)?$", GUIDE, re.MULTILINE)


def test_commands_are_accepted():
    assert len(COMMANDS) >= 3
    for words in map(shlex.split, COMMANDS):
        assert words[0] in VERBS
        tyro.cli({"export": ExportArgs, "predict": PredictArgs}[words[0]], args=words[1:])


def test_every_file_of_an_export_is_named():
    for name in {*(name.split("/")[0] for name in FILES), MANIFEST}:
        assert f"`{name}" in GUIDE


def test_tolerances_are_those_of_the_code():
    rows = re.findall(r"^\| (fp32|fp16|int8|int4) \| (\S+) \| (\S+) \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 4
    for kind, fp32, bf16 in rows:
        assert float(fp32) == tolerance(kind, "fp32")
        assert float(bf16) == tolerance(kind, "bf16")
