"""Names that become folders and files: none of them leads out of where it is put."""

from __future__ import annotations

import re

_NAME = re.compile(r"[^\s./\\\0-\x1f\x7f][^/\\\0-\x1f\x7f]{0,127}")


def check_folder_name(name: str, *, of: str) -> None:
    """Refuse a name that, as a folder under `runs/`, would not be one folder there.

    Args:
        name: of an experiment, a comparison, a machine.
        of: what is named, for the message.

    Raises:
        ValueError: naming what was found and what is expected.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{of}: name is {name[:140]!r}, but a folder or file is called by it; expected at most "
            "128 characters without slash, backslash and control characters, none of them a dot "
            "or space at the start"
        )
