"""Components for torchx: `torchx run -s SCHEDULER launch/components.py:NAME ... -- OPTIONS`.

torchx executes this file by its path, so it imports torchx and the standard library alone, and its
signatures use the spellings that torchx 0.7 can read (`Optional[str]`). What follows `--` goes to
the verb of the same name as it stands. docs/clusters.md goes from a laptop to 16 nodes.
"""

import re
import shlex
from typing import Dict, List, Optional

import torchx
from torchx import specs

STOP_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGUSR1"
"""Signals that torchrun hands on to ranks, which then finish their step, save and end."""


def train(
    *options: str,
    experiment: str,
    folder: str,
    j: str = "1x2",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    image: str = torchx.IMAGE,
    name: str = "train",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    network: Optional[str] = None,
    max_retries: int = 3,
    max_restarts: int = 3,
    grace_seconds: int = 120,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train on one or many nodes; a job that is retried goes on from its newest checkpoint.

    Args:
        options: further options of `farewell train`, after `--` (all but --warm-start)
        experiment: name of an experiment, or path/to/mine.py:function
        folder: run folder, absolute, on storage that all nodes share; trained on if it exists
        j: nodes x ranks on each, such as 2x8; elastic as least:most nodes, such as 2:4x8
        h: named resource of a node (h100x8, a100x8, h200x8, b200x8, cpu_host, laptop)
        cpu: processors of a node, where h is not given
        gpu: accelerators of a node, where h is not given
        memMB: memory of a node in MiB, where h is not given
        image: container image
        name: of the job
        env: further environment, such as NCCL_IB_HCA=mlx5_0
        mounts: mounts of the container, such as type=bind,src=/data,dst=/data
        network: network interface that ranks talk over, such as eth0
        max_retries: times that the scheduler starts the job again after it failed
        max_restarts: times that ranks are started again inside the job after one failed
        grace_seconds: time that ranks have to save when they are told to stop
        rdzv_port: port on the first node where nodes meet
    """
    words = ["train", experiment, "--folder", folder, "--resume", *options]
    return _on_ranks(
        words,
        name=name,
        folder=folder,
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        mounts=mounts,
        network=network,
        max_retries=max_retries,
        max_restarts=max_restarts,
        grace_seconds=grace_seconds,
        rdzv_port=rdzv_port,
    )


def evaluate(
    *options: str,
    experiment: str,
    folder: str,
    j: str = "1x2",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    image: str = torchx.IMAGE,
    name: str = "evaluate",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    network: Optional[str] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Score a part of the log with a checkpoint of a run, on any number of ranks.

    Args:
        options: further options of `farewell evaluate`, after `--`, such as --checkpoint newest
        experiment: that was trained
        folder: run folder, absolute, on storage that all nodes share
        j: nodes x ranks on each, such as 2x8
        h: named resource of a node (h100x8, a100x8, h200x8, b200x8, cpu_host, laptop)
        cpu: processors of a node, where h is not given
        gpu: accelerators of a node, where h is not given
        memMB: memory of a node in MiB, where h is not given
        image: container image
        name: of the job
        env: further environment
        mounts: mounts of the container, such as type=bind,src=/data,dst=/data
        network: network interface that ranks talk over, such as eth0
        max_retries: times that the scheduler starts the job again after it failed
        rdzv_port: port on the first node where nodes meet
    """
    return _on_ranks(
        ["evaluate", experiment, "--folder", folder, *options],
        name=name,
        folder=folder,
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        mounts=mounts,
        network=network,
        max_retries=max_retries,
        max_restarts=0,
        grace_seconds=30,
        rdzv_port=rdzv_port,
    )


def preflight(
    *options: str,
    folder: str,
    j: str = "2x8",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    image: str = torchx.IMAGE,
    name: str = "preflight",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    network: Optional[str] = None,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Let every rank exchange numbers with every other; name the rank that does not answer.

    Args:
        options: further options of `farewell doctor`, after `--`
        folder: that gets the ranks' logs
        j: nodes x ranks on each, such as 2x8
        h: named resource of a node (h100x8, a100x8, h200x8, b200x8, cpu_host, laptop)
        cpu: processors of a node, where h is not given
        gpu: accelerators of a node, where h is not given
        memMB: memory of a node in MiB, where h is not given
        image: container image
        name: of the job
        env: further environment
        mounts: mounts of the container, such as type=bind,src=/data,dst=/data
        network: network interface that ranks talk over, such as eth0
        rdzv_port: port on the first node where nodes meet
    """
    return _on_ranks(
        ["doctor", "--preflight", *options],
        name=name,
        folder=folder,
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        mounts=mounts,
        network=network,
        max_retries=0,
        max_restarts=0,
        grace_seconds=30,
        rdzv_port=rdzv_port,
    )


def tokenize(
    *options: str,
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    image: str = torchx.IMAGE,
    name: str = "tokenize",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
) -> specs.AppDef:
    """Turn item embeddings into gen-tokens and mem-tokens, on one node.

    Args:
        options: of `farewell tokenize`, after `--`
        h: named resource of the node (h100x8, a100x8, h200x8, b200x8, cpu_host, laptop)
        cpu: processors, where h is not given
        gpu: accelerators, where h is not given
        memMB: memory in MiB, where h is not given
        image: container image
        name: of the job
        env: further environment
        mounts: mounts of the container, such as type=bind,src=/data,dst=/data
        max_retries: times that the scheduler starts the job again after it failed
    """
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    words = ["tokenize", *options]
    return _on_one(words, name, resource, image, env, mounts, max_retries)


def embed(
    *options: str,
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    image: str = torchx.IMAGE,
    name: str = "embed",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 3,
) -> specs.AppDef:
    """Turn the texts of a catalogue into one embedding an item; goes on where it stopped.

    Args:
        options: of `farewell embed`, after `--`
        h: named resource of the node (h100x8, a100x8, h200x8, b200x8, cpu_host, laptop)
        cpu: processors, where h is not given
        gpu: accelerators, where h is not given
        memMB: memory in MiB, where h is not given
        image: container image
        name: of the job
        env: further environment
        mounts: mounts of the container, such as type=bind,src=/data,dst=/data
        max_retries: times that the scheduler starts the job again after it failed
    """
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    words = ["embed", *options]
    return _on_one(words, name, resource, image, env, mounts, max_retries)


def plan(
    *options: str,
    experiment: str,
    h: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 4096,
    image: str = torchx.IMAGE,
    name: str = "plan",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Plan an experiment's tables on clusters that need not be there; needs no accelerator.

    Args:
        options: further options of `farewell plan`, after `--`, such as --cluster h100 --nodes 16
        experiment: whose tables are planned
        h: named resource of the node (h100x8, a100x8, h200x8, b200x8, cpu_host, laptop)
        cpu: processors, where h is not given
        memMB: memory in MiB, where h is not given
        image: container image
        name: of the job
        env: further environment
        mounts: mounts of the container, such as type=bind,src=/data,dst=/data
    """
    resource = specs.resource(cpu=cpu, gpu=0, memMB=memMB, h=h)
    words = ["plan", experiment, *options]
    return _on_one(words, name, resource, image, env, mounts, max_retries=0)


def compare(
    *options: str,
    comparison: str,
    ranks: int = 2,
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    image: str = torchx.IMAGE,
    name: str = "compare",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 3,
) -> specs.AppDef:
    """Train and report a named comparison on the ranks of one node; finished rows are kept.

    Args:
        options: further options of `farewell compare`, after `--`, such as --seeds 3
        comparison: name of a comparison, or path/to/mine.py:function
        ranks: processes that each row is trained on
        h: named resource of the node (h100x8, a100x8, h200x8, b200x8, cpu_host, laptop)
        cpu: processors, where h is not given
        gpu: accelerators, where h is not given
        memMB: memory in MiB, where h is not given
        image: container image
        name: of the job
        env: further environment
        mounts: mounts of the container, such as type=bind,src=/data,dst=/data
        max_retries: times that the scheduler starts the job again after it failed
    """
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    words = ["compare", comparison, "--ranks", str(ranks), *options]
    env = {"OMP_NUM_THREADS": str(max(1, resource.cpu // ranks)), **(env or {})}
    return _on_one(words, name, resource, image, env, mounts, max_retries)


def _on_ranks(
    words: List[str],
    *,
    name: str,
    folder: str,
    j: str,
    resource: specs.Resource,
    image: str,
    env: Optional[Dict[str, str]],
    mounts: Optional[List[str]],
    network: Optional[str],
    max_retries: int,
    max_restarts: int,
    grace_seconds: int,
    rdzv_port: int,
) -> specs.AppDef:
    """A job of one torchrun agent a node; the first node's agent is where all meet."""
    min_nodes, max_nodes, ranks = _shape(j)
    if resource.gpu > 0 and ranks > resource.gpu:
        raise ValueError(f"-j {j}: {ranks} ranks on a node with {resource.gpu} accelerators")
    # A port of its own choice where all ranks are on one node; else the scheduler names the first.
    endpoint = "localhost:0"
    if max_nodes > 1:
        endpoint = f"$${{{specs.macros.rank0_env}:=localhost}}:{rdzv_port}"
    nodes = str(max_nodes) if min_nodes == max_nodes else f"{min_nodes}:{max_nodes}"
    command = [
        *("exec", "torchrun", "--nnodes", nodes, "--nproc-per-node", str(ranks)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint),
        *("--rdzv-id", specs.macros.app_id, "--role", shlex.quote("")),
        *("--max-restarts", str(max_restarts), "--shutdown-timeout", str(grace_seconds)),
        *("--signals-to-handle", STOP_SIGNALS),
        *("--tee", "3", "--log-dir", shlex.quote(f"{folder}/log/torchrun")),
        *("-m", "launch.cli", shlex.join(words)),
    ]
    interface = {} if network is None else dict.fromkeys(_INTERFACES, network)
    role = specs.Role(
        name=name,
        image=image,
        entrypoint="bash",
        args=["-c", " ".join(command)],
        env={
            **_environment(max(1, resource.cpu // ranks)),
            # A store of its own for each start of the ranks: in one that is shared they would
            # find what the ranks before a restart left behind (pytorch issue 135712).
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            **interface,
            **(env or {}),
        },
        num_replicas=max_nodes,
        min_replicas=None if min_nodes == max_nodes else min_nodes,
        max_retries=max_retries,
        # An elastic job goes on without a lost node; starting all nodes again would undo that.
        retry_policy=(
            specs.RetryPolicy.APPLICATION if min_nodes == max_nodes else specs.RetryPolicy.REPLICA
        ),
        resource=resource,
        port_map={"c10d": rdzv_port},
        mounts=specs.parse_mounts(mounts) if mounts else [],
    )
    return specs.AppDef(name=name, roles=[role])


def _on_one(
    words: List[str],
    name: str,
    resource: specs.Resource,
    image: str,
    env: Optional[Dict[str, str]],
    mounts: Optional[List[str]],
    max_retries: int,
) -> specs.AppDef:
    """A job of one process, which starts others where its verb does."""
    role = specs.Role(
        name=name,
        image=image,
        entrypoint="python",
        args=["-m", "launch.cli", *words],
        env={**_environment(max(1, resource.cpu)), **(env or {})},
        max_retries=max_retries,
        resource=resource,
        mounts=specs.parse_mounts(mounts) if mounts else [],
    )
    return specs.AppDef(name=name, roles=[role])


def _shape(j: str) -> List[int]:
    """Least nodes, most nodes, ranks on each, of `[least:]nodes x ranks`."""
    found = re.fullmatch(r"(?:(\d+):)?(\d+)x(\d+)", j)
    if found is None:
        raise ValueError(f"-j {j}: expected NODESxRANKS or LEAST:MOSTxRANKS, such as 2x8 or 2:4x8")
    least, most, ranks = found.groups()
    shape = [int(least or most), int(most), int(ranks)]
    if not 1 <= shape[0] <= shape[1] or shape[2] < 1:
        raise ValueError(f"-j {j}: expected 1 <= LEAST <= MOST nodes and at least one rank on each")
    return shape


_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def _environment(threads: int) -> Dict[str, str]:
    """What every job needs; a process that waits must not keep a processor busy."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "NCCL_DEBUG": "WARN",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "LOGLEVEL": "WARNING",
    }
