import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torchx.specs import named_resources
from torchx.specs.builders import materialize_appdef
from torchx.specs.file_linter import get_fn_docstring, validate

from launch import components
from launch.cli import VERBS
from sharding.hardware import MACHINES
from tests.unit.launch.dry_runs import COMPONENTS, FOLDER, JOBS, manifest
from trainer.stop import STOP_SIGNALS

NAMES = ("train", "evaluate", "preflight", "tokenize", "embed", "plan", "compare")
TRAIN = ["--experiment", "trm_rankmixer.smoke", "--folder", "/runs/a"]


def role(function, words):
    (only,) = materialize_appdef(function, words).roles
    return only


def command(words):
    return role(components.train, [*TRAIN, *words]).args[1]


@pytest.mark.parametrize("name", JOBS)
def test_manifest_is_the_reviewed_one(name):
    assert manifest(name) == (FOLDER / name).read_text(), (
        f"{name}: if the change is meant, `python -m tests.unit.launch.dry_runs`, then review it"
    )


def test_every_manifest_has_a_job():
    assert {path.name for path in FOLDER.iterdir()} == set(JOBS)


@pytest.mark.parametrize("name", NAMES)
def test_torchx_accepts_the_component_and_every_argument_has_a_help_text(name):
    assert validate(COMPONENTS, name) == []
    function = getattr(components, name)
    what, arguments = get_fn_docstring(function)
    assert len(what) > 20
    for argument, text in arguments.items():
        assert len(text) > 5, argument
        assert text.strip() != "(required)", argument


def test_components_import_torchx_and_the_standard_library_alone():
    for path in (Path(COMPONENTS), Path(COMPONENTS).with_name("resources.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                package = name.split(".")[0]
                assert package == "torchx" or package in sys.stdlib_module_names, (path, name)


@pytest.mark.parametrize("name", set(NAMES) - {"preflight"})
def test_a_component_runs_the_verb_of_its_name(name):
    words = {
        "train": TRAIN,
        "evaluate": TRAIN,
        "plan": ["--experiment", "a.b"],
        "compare": ["--comparison", "a.b"],
    }.get(name, [])
    text = " ".join(role(getattr(components, name), [*words, "--", "--x", "a b"]).args)
    assert f"launch.cli {name}" in text
    assert name in VERBS
    assert "--x 'a b'" in text or "--x a b" in text


def test_a_retried_job_goes_on_where_it_was():
    assert "--folder /runs/a --resume" in command([])


def test_one_node_meets_itself_and_several_meet_at_the_first():
    assert "--rdzv-endpoint localhost:0" in command(["-j", "1x2"])
    several = command(["-j", "2x2", "--rdzv_port", "4711"])
    assert "--rdzv-endpoint $${${rank0_env}:=localhost}:4711" in several
    assert "--nnodes 2 --nproc-per-node 2" in several


def test_elastic_jobs_name_the_least_and_the_most_nodes():
    elastic = role(components.train, [*TRAIN, "-j", "2:4x8", "-h", "h100x8"])
    assert "--nnodes 2:4" in elastic.args[1]
    assert (elastic.min_replicas, elastic.num_replicas) == (2, 4)
    fixed = role(components.train, [*TRAIN, "-j", "4x8", "-h", "h100x8"])
    assert (fixed.min_replicas, fixed.num_replicas) == (None, 4)


@pytest.mark.parametrize("shape", ["2", "x2", "2x", "0x2", "2x0", "4:2x2", "2x2x2", "a:2x2"])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=f"-j {re.escape(shape)}: expected"):
        command(["-j", shape])


def test_more_ranks_than_accelerators_are_refused():
    with pytest.raises(ValueError, match="16 ranks on a node with 8 accelerators"):
        command(["-j", "1x16", "-h", "h100x8"])


def test_torchrun_hands_on_every_signal_that_a_run_listens_to():
    signals = re.search(r"--signals-to-handle (\S+)", command([])).group(1).split(",")
    assert set(signals) == {number.name for number in STOP_SIGNALS}


def test_torchrun_knows_every_option_that_a_component_gives_it():
    known = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    before_module = command([]).split(" -m ")[0]
    for option in re.findall(r"--[a-z-]+", before_module):
        assert option in known, option


def test_processors_are_shared_out_over_ranks():
    environment = role(components.train, [*TRAIN, "-j", "1x8", "--cpu", "64"]).env
    assert environment["OMP_NUM_THREADS"] == "8"
    own = role(components.train, [*TRAIN, "--env", "OMP_NUM_THREADS=3,X=y"]).env
    assert (own["OMP_NUM_THREADS"], own["X"]) == ("3", "y")


def test_network_names_the_interface_for_both_backends():
    environment = role(components.train, [*TRAIN, "--network", "ib0"]).env
    assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "ib0"


@pytest.mark.parametrize("name", ["a100", "h100", "h200", "b200"])
def test_named_resources_fit_the_machines_that_plans_are_made_for(name):
    resource, machine = named_resources[f"{name}x8"], MACHINES[name]
    assert resource.gpu == machine.ranks_per_node == 8
    assert 0.8 < resource.memMB * 2**20 / (machine.ddr_bytes * machine.ranks_per_node) <= 0.95


def test_cpu_host_fits_its_machine():
    resource, machine = named_resources["cpu_host"], MACHINES["cpu"]
    assert resource.gpu == 0
    assert 0.8 < resource.memMB * 2**20 / (machine.ddr_bytes * machine.ranks_per_node) <= 0.95


def test_what_runs_in_a_container_sees_what_is_mounted():
    """Also the preflight, whose logs go to storage that all nodes share."""
    words = {"plan": ["--experiment", "a.b"], "compare": ["--comparison", "a.b"]}
    words |= {"train": TRAIN, "evaluate": TRAIN, "preflight": ["--folder", "/shared/logs"]}
    for name in NAMES:
        mounts = ["--mounts", "type=bind,src=/lustre,dst=/shared"]
        (mount,) = role(getattr(components, name), [*words.get(name, []), *mounts]).mounts
        assert (mount.src_path, mount.dst_path) == ("/lustre", "/shared"), name


def test_unknown_resource_is_an_error_that_suggests_one():
    with pytest.raises(KeyError, match="Did you mean `h100x8`"):
        command(["-h", "h100x9"])
