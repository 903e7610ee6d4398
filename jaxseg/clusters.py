"""Which cluster started this process, and with how many others, read from its environment.

    Open MPI   mpirun -n 8 python -m jaxseg.main ...           version 4, or 5 on one host
    Slurm      srun python -m jaxseg.main ...                  one task per GPU, or one per node
    GKE TPU    the variables that GKE sets in the containers of a TPU slice, or several slices
    TPU VM     the metadata server of a Cloud TPU VM

These are the clusters that jax finds too, at the same addresses. What differs: what is one process
is told first and asks for nothing more, so that a notebook with a TPU or a shell inside a Slurm job
does not wait for others; and a task with several GPUs gets all of them. JAX_COORDINATOR_ADDRESS and
JAX_COORDINATOR_PORT set another address.
"""

import dataclasses
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping

from jaxseg.errors import UserError

TPU_PORT = "8482"
_PORTS = 65535 - 2**12 + 1, 2**12  # the first of the ports that a job's number chooses among
_SPECIAL_STEPS = 0xFFFFFFF0  # Slurm's numbers of interactive, batch and other steps without tasks

Environ = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A run of several processes, as one of them sees it.

    Attributes:
      name: for messages, and different for jobs side by side: 'Slurm job 123'.
      coordinator: HOST:PORT where process 0 listens.
      num_processes, process_id: how many there are, and which this is, from 0.
      gpus: the numbers of its GPUs among those it can see; None: all, or it has none.
    """

    name: str
    coordinator: str
    num_processes: int
    process_id: int
    gpus: tuple[int, ...] | None = None

    def unless_alone(self) -> "Cluster | None":
        return None if self.num_processes == 1 else self


def from_flags(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Cluster | None:
    """The run that the three flags tell of; None where that is a single process.

    Raises:
      UserError: one of the flags is missing or wrong.
    """
    flags = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: expected 1 or more")
    missing = " and ".join(name for name, value in flags.items() if value is None)
    if missing:
        given = " ".join(f"{name}={value}" for name, value in flags.items() if value is not None)
        raise UserError(
            f"{given}: without {missing}. A run of several processes is given all three: "
            "--coordinator=HOST:PORT of process 0, --num_processes=N, the same for all, and "
            "--process_id, from 0 to N-1; or none of them where Slurm, Open MPI or Cloud TPU "
            "starts the processes"
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id}: expected 0 to {num_processes - 1}, for "
            f"--num_processes={num_processes}"
        )
    address = _address("--coordinator", coordinator)
    return Cluster("given by flags", address, num_processes, process_id).unless_alone()


def _address(name: str, text: str) -> str:
    """`text` if it is HOST:PORT; raises `UserError` that names the setting otherwise."""
    match = re.fullmatch(r"([^:\s]+|\[[0-9a-fA-F:.%\w]+\]):(\d{1,5})", text)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise UserError(
            f"{name}={text}: expected HOST:PORT with a port from 1 to 65535, as in 10.0.0.1:8476"
        )
    return text


def detect(
    environ: Environ, interactive: bool, metadata: Callable[[str], str | None]
) -> Cluster | None:
    """The cluster that started this process; None where it is alone.

    Args:
      environ: environment variables, after jax is imported: it sets TPU_SKIP_MDS_QUERY where there
        is no TPU.
      interactive: whether a person types, at a terminal. No cluster's processes are started there.
      metadata: see `metadata_of_vm`.

    Raises:
      UserError: a variable of the cluster's is missing or not what it should be.
    """
    cluster = _open_mpi(environ) or _slurm(environ, interactive) or _gke_tpu(environ)
    if cluster is None and "TPU_SKIP_MDS_QUERY" not in environ:
        cluster = _tpu_vm(environ, metadata)
    return cluster and cluster.unless_alone()


def _number(environ: Environ, name: str, default: str = "") -> int:
    text = environ.get(name, default)
    if not text.isdigit():
        raise UserError(
            f"the environment variable {name}={text!r} should be a number: was it lost on the way "
            "to this process? Give --coordinator, --num_processes and --process_id instead"
        )
    return int(text)


def _at(environ: Environ, host: str, port: str | int) -> str:
    """The address of process 0, or what jax's variables say in its place."""
    if "JAX_COORDINATOR_ADDRESS" in environ:
        return _address("JAX_COORDINATOR_ADDRESS", environ["JAX_COORDINATOR_ADDRESS"])
    host = f"[{host}]" if ":" in host else host
    return _address(
        "the address of process 0", f"{host}:{environ.get('JAX_COORDINATOR_PORT', port)}"
    )


def _port(job: int) -> int:
    first, count = _PORTS
    return first + job % count


def _open_mpi(environ: Environ) -> Cluster | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    size = _number(environ, "OMPI_COMM_WORLD_SIZE")
    local = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK", "0")
    on_node = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", str(size))
    if size == 1:
        return Cluster("Open MPI", "", 1, 0)
    launcher = environ.get("OMPI_MCA_orte_hnp_uri", "")  # '1531576320.0;tcp://10.96.0.1,10.1:34911'
    found = re.search(r"tcp://(.+?)[,:]|tcp6://\[(.+?)[,\]]", launcher)
    if found:
        job = int(launcher.partition(".")[0]) // 2**12  # of which it always is a multiple
        name, host = f"Open MPI job {job}", found[1] or found[2]
    else:  # version 5, which tells processes nothing of other hosts
        name = f"Open MPI job {environ.get('PMIX_NAMESPACE', '')}".rstrip()
        job, host = zlib.crc32(name.encode()), "127.0.0.1"
        if on_node != size and "JAX_COORDINATOR_ADDRESS" not in environ:
            raise UserError(
                "this version of Open MPI does not tell processes where process 0 is: start them "
                "with mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT, where HOST is the first host"
            )
    address = _at(environ, host, _port(job))
    gpus = _gpus(environ, local, on_node)
    return Cluster(name, address, size, _number(environ, "OMPI_COMM_WORLD_RANK"), gpus)


def _slurm(environ: Environ, interactive: bool) -> Cluster | None:
    needed = "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"
    if not all(name in environ for name in needed):
        return None  # the script of a batch job, or a shell on the node that salloc was called on
    step = _number(environ, "SLURM_STEP_ID", "0")
    # A shell of salloc, or of srun --pty, has the variables of a task, and SLURM_NTASKS of the job.
    if interactive or step >= _SPECIAL_STEPS:
        return None
    job = _number(environ, "SLURM_JOB_ID")
    # Of the step, which may be of a part of the job's tasks; older versions tell only of both.
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    # node001, node001,host2 and node[001,007-015],host2: the first of them
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", environ["SLURM_STEP_NODELIST"]).split(",")[0]
    return Cluster(
        f"Slurm job {job}" + (f" step {step}" if step else ""),
        _at(environ, host, _port(job + step)),
        _number(environ, tasks),
        _number(environ, "SLURM_PROCID"),
        _gpus(environ, _number(environ, "SLURM_LOCALID"), _tasks_on_node(environ)),
    )


def _tasks_on_node(environ: Environ) -> int | None:
    """Of SLURM_STEP_TASKS_PER_NODE='4(x2),3' those of this node; None where it is not known."""
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    node = _number(environ, "SLURM_NODEID", "0")
    return counts[node] if node < len(counts) else None


def _gpus(environ: Environ, local: int, on_node: int | None) -> tuple[int, ...] | None:
    """The GPUs of the process `local` of `on_node` on this host.

    jax takes one per process, that of its number. Here a process that is alone on its host takes
    all; one that sees a single GPU, to which it is bound, takes this; else they are shared evenly.
    """
    if on_node == 1:
        return None
    visible = [x for x in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]
    if len(visible) == 1:
        return (0,)
    share = max(len(visible) // on_node, 1) if on_node else 1
    return tuple(range(local * share, (local + 1) * share))


def _gke_tpu(environ: Environ) -> Cluster | None:
    names = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if not names:
        return None
    hosts = [name.strip() for name in names.split(",")]
    name = f"TPU slice of {len(hosts)} hosts"
    return _tpu(name, hosts, lambda: _number(environ, "TPU_WORKER_ID"), environ, environ.get)


def _tpu_vm(environ: Environ, metadata: Callable[[str], str | None]) -> Cluster | None:
    worker = metadata("agent-worker-number")
    if worker is None:
        return None
    # 'host' or 'name:id:ip' of each
    endpoints = (metadata("worker-network-endpoints") or "").split(",")
    hosts = [endpoint.split(":")[-1].strip() for endpoint in endpoints]
    described = dict(re.findall(r"(\w+)\s*:\s*'?([^'\n]*)", metadata("tpu-env") or ""))

    def of_slices(name: str) -> str | None:
        return environ.get(name) or described.get(name)

    return _tpu(f"TPU VM of {len(hosts)} hosts", hosts, lambda: int(worker), environ, of_slices)


def _tpu(
    name: str,
    hosts: list[str],
    worker: Callable[[], int],
    environ: Environ,
    of_slices: Callable[[str], str | None],
) -> Cluster:
    """One slice of these hosts, or one of several, of which `of_slices` looks up variables."""
    slices = int(of_slices("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) * slices == 1:
        return Cluster(name, "", 1, 0)  # as in notebooks, where its name may be of no host
    first = of_slices("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    index = int(of_slices("MEGASCALE_SLICE_ID") or 0)
    address = _at(environ, first.split(":")[0], TPU_PORT)
    if slices > 1:
        name = f"{slices} slices, each a {name}"
    return Cluster(name, address, len(hosts) * slices, index * len(hosts) + worker())


def metadata_of_vm(key: str) -> str | None:
    """An attribute of this virtual machine; None where it has none of that name.

    Raises:
      UserError: the server that tells it is there, and does not answer.
    """
    import urllib.error
    import urllib.request

    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for wait in (0.5, 2.0, 0.0):
        try:
            with opener.open(request, timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            reason = str(error)
        except OSError as error:
            reason = str(getattr(error, "reason", error))
            if "not known" in reason or "resolution" in reason:  # no such host
                return None
        time.sleep(wait)
    raise UserError(
        f"{url}: {reason}. It tells a Cloud TPU VM how many hosts there are; where this is the "
        "only one, say so with --nodistributed"
    )
