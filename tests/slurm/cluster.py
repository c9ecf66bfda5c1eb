"""A real Slurm of one node, for the tests: munge, controller and node daemon on loopback.

Debian's ``slurm-wlm`` and ``munge`` are enough; it needs root, but neither systemd nor cgroups.
Everything lies in one temporary folder, the ports are free ones, and the node claims to have eight
CPUs, so that as many jobs fit on any machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
SBIN = "/usr/sbin"

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job may start again when its old credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
JobRequeue=1
KillWait={kill_wait}
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=4096 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""

KILL_WAIT = 5
"""Seconds between SIGTERM and SIGKILL of a job that is cancelled or requeued."""

SECONDS_TO_START = 20.0


def missing_programs() -> list[str]:
    """What of Slurm and munge is not installed here."""
    return [name for name in PROGRAMS if find(name) is None]


def find(program: str) -> str | None:
    """The path of a program, also where sbin is not on the path."""
    return shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}")


@contextmanager
def running_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a cluster in ``folder``; yields the variables that its clients need, stops it after.

    RuntimeError, with the daemons' logs, where it does not start.
    """
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    _write_configuration(folder)
    with ExitStack() as daemons:
        key, munge = folder / "munge.key", folder / "munge"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        daemons.enter_context(
            _daemon(
                folder,
                [
                    "munged",
                    "--foreground",
                    "--force",
                    f"--key-file={key}",
                    f"--socket={munge}.socket",
                ],
                [f"--pid-file={munge}.pid", f"--log-file={munge}.log", f"--seed-file={munge}.seed"],
            )
        )
        _wait(lambda: Path(f"{munge}.socket").exists(), folder)
        daemons.enter_context(_daemon(folder, ["slurmctld", "-D"], ["-f", folder / "slurm.conf"]))
        daemons.enter_context(
            _daemon(folder, ["slurmd", "-D"], ["-N", "localhost", "-f", folder / "slurm.conf"])
        )
        _wait(lambda: _is_idle(environment), folder)
        try:
            yield environment
        finally:
            _cancel_all(environment)


def slurm(environment: dict[str, str], *words: str) -> str:
    """The output of a Slurm command."""
    result = subprocess.run(
        words, env={**os.environ, **environment}, capture_output=True, text=True, timeout=30
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(words)}: {result.stderr}")
    return result.stdout


def _write_configuration(folder: Path) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    controller_port, node_port = _free_ports(2)
    text = CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname().split(".")[0],
        controller_port=controller_port,
        node_port=node_port,
        kill_wait=KILL_WAIT,
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@contextmanager
def _daemon(folder: Path, command: Sequence[str], options: Sequence[object]) -> Iterator[None]:
    program, *rest = command
    with (folder / f"{program}.output").open("w") as output:
        process = subprocess.Popen(
            [str(find(program)), *rest, *map(str, options)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_idle(environment: dict[str, str]) -> bool:
    try:
        return "idle" in slurm(environment, "sinfo", "-h", "-o", "%T")
    except RuntimeError:
        return False


def _cancel_all(environment: dict[str, str]) -> None:
    """End all jobs, so that no process of theirs outlives the daemons."""
    slurm(environment, "scancel", "--user=root")
    deadline = time.monotonic() + KILL_WAIT + 10
    while slurm(environment, "squeue", "-h") and time.monotonic() < deadline:
        time.sleep(0.2)


def _wait(ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not ready():
        if time.monotonic() > deadline:
            logs = [path for pattern in ("*.log", "*.output") for path in folder.glob(pattern)]
            texts = [f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(logs)]
            raise RuntimeError("Slurm does not start:\n" + "\n".join(texts))
        time.sleep(0.1)
