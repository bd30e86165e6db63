"""A SLURM cluster of two nodes on this machine, for as long as tests need it.

``python -m tests.slurm.cluster`` opens a shell in one.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("srun", "sbatch", "scancel", "scontrol", "squeue", "sinfo", "unmunge")
PACKAGES = "slurmctld slurmd slurm-client munge"
NODES = ("n1", "n2")
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

# Partition `main` can be preempted by `high`: its jobs get SIGTERM, and 10 s later they are requeued.
CONFIG = """\
ClusterName=difftumor
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2,kill_invalid_depend
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
MinJobAge=3600
InactiveLimit=0
ReturnToService=1
SlurmctldTimeout=60
SlurmdTimeout=20
SlurmdParameters=config_overrides
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldDebug=info
SlurmdDebug=info
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE DefaultTime=30 State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE DefaultTime=30 State=UP PriorityTier=10 PreemptMode=OFF
"""

# There is no accounting database; submitit asks for these three columns of it, and waits without end if it gets none.
SACCT = """\
#!/usr/bin/env bash
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do case $1 in -j) shift
  scontrol -o show job "$1" 2>/dev/null | awk '{
    delete f; for (i = 1; i <= NF; i++) { p = index($i, "="); if (p) f[substr($i, 1, p - 1)] = substr($i, p + 1) }
    id = f["JobId"]
    if ("ArrayJobId" in f) { t = f["ArrayTaskId"]; id = f["ArrayJobId"] "_" (t ~ /[-,%]/ ? "[" t "]" : t) }
    print id "|" f["JobState"] "|" f["NodeList"] }';; esac; shift; done
"""


def missing() -> str | None:
    """Return why there can be no cluster here, in one sentence, or None."""
    lacking = [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=SYSTEM_PATH) is None]
    return f"SLURM is not installed (no {lacking[0]}): apt install {PACKAGES}" if lacking else None


@dataclass
class SlurmCluster:
    """A running cluster; ``environment`` lets programs use it."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *words: object, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a program as a user of the cluster and return what it printed."""
        done = subprocess.run([str(w) for w in words], env=self.environment, capture_output=True, text=True,
                              timeout=timeout)  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def submit(self, *options: object, script: str) -> int:
        """Submit a shell script and return the id of its job."""
        file = self.folder / f"script-{time.monotonic_ns()}.sh"
        file.write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        return int(self.run("sbatch", "--parsable", *options, file).stdout.split(";")[0])

    def job(self, job: int | str) -> dict[str, str]:
        """Return what the scheduler knows of a job: ``JobState``, ``ExitCode``, ``NodeList``, ``Restarts``, …."""
        fields = self.run("scontrol", "-o", "show", "job", job).stdout.split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, job: int | str, *states: str, timeout: float = 120) -> dict[str, str]:
        """Wait until a job is in one of some states; without any, until it has ended."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        end = time.monotonic() + timeout
        while (found := self.job(job))["JobState"] not in (states or ended):
            assert time.monotonic() < end, f"job {job} is {found['JobState']}, not {states or 'ended'}: {found}"
            time.sleep(0.2)
        return found

    def wait_for_restart(self, job: int | str, since: int = 0, timeout: float = 300) -> None:
        """Wait until a job was requeued more often than it had been."""
        wait_until(lambda: int(self.job(job)["Restarts"]) > since, timeout, f"job {job} was not requeued")

    def set_node(self, node: str, state: str) -> None:
        """Set a node ``down`` or let it ``resume``."""
        self.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")

    def set_idle(self) -> None:
        """End all jobs and bring all nodes back."""
        self.run("scancel", "--user", _user())
        wait_until(lambda: not self.run("squeue", "--noheader").stdout, 60, "jobs do not end")
        for line in self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t").stdout.splitlines():
            node, state = line.split()
            if state.rstrip("*") in ("down", "drain", "drng"):
                self.set_node(node, "resume")
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        """Wait until both nodes answer and are idle."""

        def idle() -> bool:
            done = self.run("sinfo", "--noheader", "--partition=main", "--Node", "--format=%t", check=False)
            return done.stdout.split() == ["idle"] * len(NODES)

        wait_until(idle, 60, "nodes are not idle")


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Start munged, slurmctld and two slurmd on loopback; end them, and all jobs, at the end.

    Any number of clusters can be up at once. The daemons are children of this process and end with it.

    Args:
        folder: An empty folder, for all files of the cluster.
    """
    folder.chmod(0o755)  # munged refuses others
    _write_files(folder)
    environment = {
        **os.environ,
        "PATH": f"{folder}/bin:{Path(sys.executable).parent}:{SYSTEM_PATH}",
        "SLURM_CONF": f"{folder}/slurm.conf",
        # The names of the nodes do not resolve; on a real cluster they do, and Lightning takes the first one's.
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    cluster = SlurmCluster(folder, environment)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        munge = ("--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
                 f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", "--num-threads=2",
                 f"--log-file={folder}/munged.log.full")  # fmt: skip
        daemons.append(_daemon(cluster, "munged", "munged", *munge))
        wait_until((folder / "munge.socket").exists, 20, "munged does not start", folder)
        daemons.append(_daemon(cluster, "slurmctld", "slurmctld", "-D"))
        daemons += [_daemon(cluster, f"slurmd.{node}", "slurmd", "-D", "-N", node) for node in NODES]
        try:
            cluster.wait_for_nodes()
        except AssertionError as error:
            raise AssertionError(f"{error}\n{_logs(folder)}") from None
        yield cluster
    finally:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            cluster.set_idle()
        for daemon in reversed(daemons):
            _end(daemon)


def _write_files(folder: Path) -> None:
    for name in ("state", "bin", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "bin/sacct").write_text(SACCT, encoding="utf-8")
    (folder / "bin/sacct").chmod(0o755)
    # Any device stands for a GPU: jobs are told by number which ones they may use.
    gpus = [f"NodeName={node} Name=gpu File={device}\n" for node in NODES for device in ("/dev/null", "/dev/zero")]
    (folder / "gres.conf").write_text("".join(gpus), encoding="utf-8")
    # Lightning takes a port for its processes from the job's id; those of two clusters should differ.
    text = CONFIG.format(
        host=socket.gethostname().split(".")[0],
        user=_user(),
        folder=folder,
        ports=_free_ports(1 + len(NODES)),
        first_job=random.SystemRandom().randrange(1000, 60000),
    )
    (folder / "slurm.conf").write_text(text, encoding="utf-8")


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _daemon(cluster: SlurmCluster, name: str, *words: str) -> subprocess.Popen[bytes]:
    with (cluster.folder / f"{name}.log").open("wb") as log:
        # The kernel ends it should this process be killed.
        return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *words], env=cluster.environment, stdout=log,
                                stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def wait_until(condition: Callable[[], object], seconds: float, otherwise: str, folder: Path | None = None) -> None:
    """Wait until a condition holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{otherwise}\n{_logs(folder) if folder else ''}"
        time.sleep(0.1)


def _logs(folder: Path) -> str:
    """The last lines of all daemons."""
    return "\n".join(line for log in sorted(folder.glob("*.log")) for line in
                     (log.name, *log.read_text(errors="replace").splitlines()[-8:]))  # fmt: skip


def main() -> None:
    """Open a shell in a cluster."""
    if reason := missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder, slurm_cluster(Path(folder)) as cluster:
        print("A cluster of two nodes; leave the shell to end it.")
        subprocess.run([os.environ.get("SHELL", "bash")], env=cluster.environment)


if __name__ == "__main__":
    main()
