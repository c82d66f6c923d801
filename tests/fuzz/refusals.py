"""What a refusal must look like."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OWN = ("trainer", "sharding", "tokenization", "configs", "launch")


def refusal(call: Callable[[], Any], kind: type[ValueError] = ValueError) -> str | None:
    """The message with which our code refuses; None when it accepts.

    Whatever else is raised, or a `ValueError` from deep inside a package, fails the test.
    """
    try:
        call()
    except kind as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        path = Path(frame.filename)
        own = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in OWN
        assert own, f"{error!r} comes from {frame.filename}:{frame.lineno}"
        assert len(str(error)) > 20, error
        return str(error)
    return None


def tree(folder: Path) -> set[Path]:
    """All files and folders inside."""
    return set(folder.rglob("*"))
