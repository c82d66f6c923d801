"""A Slurm cluster of two nodes and a spare on this one machine, for tests and for trying out.

    python -m tests.cluster.slurm_cluster start /tmp/slurm    # prints the SLURM_CONF to export
    python -m tests.cluster.slurm_cluster stop /tmp/slurm

Needs root and Debian's packages slurm-wlm, munge, slurmdbd and mariadb-server (`make test-cluster`
installs them): `torchx run` asks for a job's state with sacct, which needs accounting. Nodes are
`slurmd` daemons of this machine, n0, n1 and n2, with ports, spool folders and logs of their own;
all files lie in the given folder; the names are added to /etc/hosts while the cluster runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

NODES = ("n0", "n1", "n2")
PACKAGES = "slurm-wlm, munge, slurmdbd, mariadb-server"
PROGRAMS = (
    *("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol"),
    *("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db"),
)
HOSTS = Path("/etc/hosts")
HOSTS_LINE = f"127.0.0.1 {' '.join(NODES)} # farewell test cluster\n"

CONFIG = """
ClusterName=farewell
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={folder}/munge.socket
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=30
KillWait=60
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PartitionName=all Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""

ACCOUNTING_CONFIG = """
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=root
StorageLoc=slurm
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
"""


class SlurmCluster:
    """Controller, nodes, accounting, and munge, which they authenticate with.

    Args:
        folder: for configuration, state and logs; kept after `stop`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.config = self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.config)}

    def start(self) -> None:
        """Start the daemons and wait until all nodes take jobs.

        Raises:
            RuntimeError: when something is missing or does not come up.
        """
        missing = [name for name in PROGRAMS if _program(name) is None]
        if missing or os.geteuid() != 0:
            raise RuntimeError(f"needs root and {PACKAGES}; missing: {missing or 'root'}")
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        for node in NODES:
            (self.folder / f"spool_{node}").mkdir(exist_ok=True)
        self._add_hosts()
        self._start_munge()
        ports = _free_ports(3 + len(NODES))
        lines = CONFIG.format(
            host=socket.gethostname(),
            folder=self.folder,
            controller_port=ports[0],
            accounting_port=ports[1],
            nodes=",".join(NODES),
        )
        for node, port in zip(NODES, ports[3:], strict=True):
            lines += f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 "
            lines += f"Port={port} CPUs=2 RealMemory=8000 State=UNKNOWN\n"
        self.config.write_text(lines)
        self._start_accounting(accounting_port=ports[1], database_port=ports[2])
        self._daemon("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def stop(self) -> None:
        """End every process of the cluster and take its names out of /etc/hosts."""
        for node in NODES:
            self.kill_node(node)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            _end(self._pid(name))
        HOSTS.write_text(HOSTS.read_text().replace(HOSTS_LINE, ""))

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._daemon("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and everything that runs on that node, as when it loses power."""
        processes = self._processes_of(node)
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)

    def wait_for_nodes(self, timeout: float = 60) -> None:
        """Wait until all nodes are idle.

        Raises:
            RuntimeError: with what sinfo says, when they are not in time.
        """
        deadline = time.monotonic() + timeout
        wanted = "\n".join(f"{node} idle" for node in NODES)
        while (found := self.run("sinfo", "-h", "-N", "-o", "%N %T")) != wanted:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nodes are not idle; logs in {self.folder}:\n{found}")
            time.sleep(0.5)

    def run(self, *command: str) -> str:
        """Output of one of Slurm's commands."""
        program = _program(command[0])
        assert program is not None
        found = subprocess.run(
            [program, *command[1:]],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return found.stdout.strip() or found.stderr.strip()

    def jobs(self) -> dict[str, str]:
        """Id -> state of every job that is not over."""
        lines = self.run("squeue", "-h", "-o", "%A %T").splitlines()
        return dict(line.split(" ", 1) for line in lines)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
        self._daemon(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge.seed",
        )

    def _start_accounting(self, *, accounting_port: int, database_port: int) -> None:
        """A database of this cluster's own, slurmdbd on it, and the cluster's name in it."""
        data = self.folder / "database"
        common = ["--no-defaults", f"--datadir={data}", "--user=root"]
        self._daemon("mariadb-install-db", *common, "--skip-test-db")
        with (self.folder / "mariadbd.log").open("a") as log:
            subprocess.Popen(
                [
                    *(str(_program("mariadbd")), *common),
                    *(f"--socket={self.folder}/database.socket", "--skip-grant-tables"),
                    *("--bind-address=127.0.0.1", f"--port={database_port}"),
                    *(f"--pid-file={self.folder}/mariadbd.pid", "--innodb-buffer-pool-size=32M"),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        _wait_for_port(database_port)
        config = self.folder / "slurmdbd.conf"
        config.touch(mode=0o600)
        config.write_text(
            ACCOUNTING_CONFIG.format(
                folder=self.folder, accounting_port=accounting_port, database_port=database_port
            )
        )
        self._daemon("slurmdbd")
        _wait_for_port(accounting_port)
        self.run("sacctmgr", "-i", "add", "cluster", "farewell")

    def _daemon(self, name: str, *arguments: str) -> None:
        program = _program(name)
        assert program is not None
        with (self.folder / f"start_{name}.log").open("a") as log:
            code = subprocess.run(
                [program, *arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                check=False,
                timeout=60,
            ).returncode
        if code:
            raise RuntimeError(f"{name} {' '.join(arguments)}: exit code {code}; see {log.name}")

    def _pid(self, name: str) -> int | None:
        path = self.folder / f"{name}.pid"
        return int(path.read_text()) if path.exists() and path.read_text().strip() else None

    def _processes_of(self, node: str) -> list[psutil.Process]:
        """Daemon, step managers and ranks of one node: known by configuration and node name."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                command = process.cmdline()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if environment.get("SLURM_CONF") != str(self.config):
                continue
            is_daemon = bool(command) and "slurmd" in command[0] and node in command
            if is_daemon or environment.get("SLURMD_NODENAME") == node:
                found.append(process)
                found += [
                    parent for parent in process.parents() if parent.name().startswith("slurmstepd")
                ]
        return list(dict.fromkeys(found))

    def _add_hosts(self) -> None:
        if HOSTS_LINE not in HOSTS.read_text():
            with HOSTS.open("a") as file:
                file.write(HOSTS_LINE)


def available() -> bool:
    """True where a cluster can be started: as root, with the packages installed."""
    return os.geteuid() == 0 and all(_program(name) is not None for name in PROGRAMS)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_for_port(port: int, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing answers on port {port}")
        time.sleep(0.2)


def _end(pid: int | None) -> None:
    if pid is None or not psutil.pid_exists(pid):
        return
    process = psutil.Process(pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except psutil.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    action, place = sys.argv[1:]
    cluster = SlurmCluster(Path(place))
    if action == "start":
        cluster.start()
        print(f"export SLURM_CONF={cluster.config}")
    elif action == "stop":
        cluster.stop()
    else:
        raise SystemExit(f"{action}: expected start or stop")
