from dataclasses import replace
from pathlib import Path

import pytest

from configs import id_vs_tokens, scale, storage, towers, trm_rankmixer
from sharding.folder_names import check_folder_name
from sharding.hardware import MACHINES

OUTSIDE = [
    "../x",
    "..",
    "a/../../x",
    "/etc/x",
    "a/b",
    "a\\b",
    "",
    ".hidden",
    "a\nb",
    "a\0b",
    "x" * 129,
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match=r"thing: name is .*expected at most 128 characters"):
        check_folder_name(name, of="thing")


@pytest.mark.parametrize("name", ["trm_rankmixer", "storage.trm_paper", "TRM, 4 x 256", "x" * 128])
def test_other_names_stay_below_runs(name):
    check_folder_name(name, of="thing")
    assert (Path("runs") / name).resolve().parent == Path("runs").resolve()


@pytest.mark.parametrize(
    "value",
    [
        trm_rankmixer.smoke(),
        id_vs_tokens.smoke(),
        storage.smoke(),
        towers.smoke(),
        scale.smoke(),
        next(iter(MACHINES.values())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_folders_are_named_after_is_checked(value):
    with pytest.raises(ValueError, match="a folder or file is called by it"):
        replace(value, name="../../somewhere")
