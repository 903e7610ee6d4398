"""What is found of other processes in the environments that clusters make."""

import pytest

from jaxseg import clusters
from jaxseg.errors import UserError

NO_TPU = {"TPU_SKIP_MDS_QUERY": "1"}  # set by jax where there is no TPU
SLURM = {
    "SLURM_JOB_ID": "100",
    "SLURM_STEP_NODELIST": "node[007-008,011]",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
} | NO_TPU
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
} | NO_TPU
GKE = {"TPU_WORKER_HOSTNAMES": "tpu-0.job,tpu-1.job", "TPU_WORKER_ID": "1"} | NO_TPU
SLICES = GKE | {
    "MEGASCALE_COORDINATOR_ADDRESS": "first.job:8081",
    "MEGASCALE_NUM_SLICES": "3",
    "MEGASCALE_SLICE_ID": "2",
}
TPU_VM = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\nTYPE: 'V5'",
}


def detect(environ, interactive=False, metadata=None):
    return clusters.detect(environ, interactive, (metadata or {}).get)


def place(cluster):
    return cluster.coordinator, cluster.num_processes, cluster.process_id


@pytest.mark.parametrize(
    ("environ", "metadata", "expected"),
    [
        (SLURM, {}, ("node007:61540", 6, 3)),  # 61440 + 100
        (SLURM | {"SLURM_STEP_NODELIST": "a,b[1-2]"}, {}, ("a:61540", 6, 3)),
        (SLURM | {"SLURM_STEP_NODELIST": "rack[2-3]-gpu[1,4]"}, {}, ("rack2-gpu1:61540", 6, 3)),
        (SLURM | {"SLURM_STEP_ID": "1"}, {}, ("node007:61541", 6, 3)),  # two steps side by side
        (SLURM | {"SLURM_NTASKS": "16", "SLURM_STEP_NUM_TASKS": "6"}, {}, ("node007:61540", 6, 3)),
        (SLURM | {"JAX_COORDINATOR_PORT": "99"}, {}, ("node007:99", 6, 3)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "there:98"}, {}, ("there:98", 6, 3)),
        (OPEN_MPI, {}, ("10.96.0.1:62624", 4, 2)),  # 61440 + 1531576320 / 4096 modulo 4096
        (
            OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::b9b,fe80::1]:43370"},
            {},
            ("[fe80::b9b]:61441", 4, 2),
        ),
        (GKE, {}, ("tpu-0.job:8482", 2, 1)),
        (GKE | {"TPU_PROCESS_ADDRESSES": "a:8476,b:8476,c:8476"}, {}, ("a:8482", 3, 1)),
        (SLICES, {}, ("first.job:8482", 6, 5)),
        ({}, TPU_VM, ("10.0.0.2:8482", 2, 1)),
        ({}, TPU_VM | {"worker-network-endpoints": "h0,h1,h2"}, ("h0:8482", 3, 1)),
        (
            {},
            TPU_VM
            | {
                "tpu-env": "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
                "MEGASCALE_COORDINATOR_ADDRESS: '10.0.9.9:8080'\n"
            },
            ("10.0.9.9:8482", 4, 3),
        ),
    ],
)
def test_finds_where_the_others_are(environ, metadata, expected):
    assert place(detect(environ, metadata=metadata)) == expected


def fails(*_):
    raise AssertionError("asked for what a process that is alone has no need of")


@pytest.mark.parametrize(
    "environ",
    [
        NO_TPU,  # a laptop, a machine with GPUs
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        SLURM | {"SLURM_STEP_ID": "4294967290"},  # the shell that salloc opens on the first node
        {name: SLURM[name] for name in SLURM if name != "SLURM_STEP_NODELIST"},  # a batch script
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"} | NO_TPU,  # Colab
        {"TPU_PROCESS_ADDRESSES": "local", "CLOUD_TPU_TASK_ID": "0"},  # Kaggle
        GKE | {"TPU_WORKER_HOSTNAMES": "tpu-0.job"},  # a slice of one host
    ],
)
def test_what_is_alone_asks_for_nothing(environ):
    assert clusters.detect(environ, False, fails) is None


def test_a_tpu_vm_of_one_host_is_alone():
    assert detect({}, metadata=TPU_VM | {"worker-network-endpoints": "x:y:10.0.0.2"}) is None
    assert detect({}, metadata={}) is None  # not a TPU VM


def test_a_person_at_a_terminal_is_no_task_of_slurm():
    # srun --pty bash in a job of several tasks: the variables are those of a task.
    assert detect(SLURM, interactive=True) is None
    assert detect(SLURM, interactive=False) is not None


@pytest.mark.parametrize(
    ("visible", "per_node", "local", "gpus"),
    [
        ("0,1,2,3", "4(x2)", 1, (1,)),  # one task per GPU
        ("0,1,2,3", "1(x2)", 0, None),  # one per node: all of them
        ("0,1,2,3", "2(x2)", 1, (2, 3)),
        ("0", "4(x2)", 3, (0,)),  # bound to its own by --gpus-per-task=1
        ("0,1", "1,2", 1, (1,)),  # of the second node
        (None, "4(x2)", 3, (3,)),
        (None, None, 3, (3,)),
    ],
)
def test_a_task_has_its_share_of_the_gpus(visible, per_node, local, gpus):
    environ = SLURM | {"SLURM_LOCALID": str(local), "SLURM_NODEID": "1"}
    environ |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    environ |= {"SLURM_STEP_TASKS_PER_NODE": per_node} if per_node else {}
    assert detect(environ).gpus == gpus


def test_open_mpi_5_on_one_host_and_on_several():
    environ = {name: OPEN_MPI[name] for name in OPEN_MPI if name != "OMPI_MCA_orte_hnp_uri"}
    environ |= {"PMIX_NAMESPACE": "prterun-host-123@1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    found = detect(environ)
    assert found.coordinator.startswith("127.0.0.1:") and place(found)[1:] == (4, 2)
    other = detect(environ | {"PMIX_NAMESPACE": "prterun-host-124@1"})
    assert other.coordinator != found.coordinator
    with pytest.raises(UserError, match="mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        detect(environ | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"})


@pytest.mark.parametrize("environ", [SLURM, OPEN_MPI])
def test_agrees_with_jax(environ, monkeypatch):
    from jax._src.clusters import ClusterEnv

    for name in environ:
        monkeypatch.setenv(name, environ[name])
    theirs = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 1)
    found = detect(environ)
    assert theirs == (*place(found), list(found.gpus))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("a:1", None, None), ["--coordinator=a:1: without --num_processes and --process_id"]),
        (("a:1", 2, None), ["--num_processes=2: without --process_id"]),
        ((None, None, 1), ["--process_id=1: without --coordinator and --num_processes"]),
        ((None, 2, 0), ["without --coordinator"]),
        (("a:1", 2, 2), ["--process_id=2: expected 0 to 1"]),
        (("a:1", 2, -1), ["--process_id=-1: expected 0 to 1"]),
        (("a:1", 0, 0), ["--num_processes=0"]),
        (("a", 2, 0), ["--coordinator=a: expected HOST:PORT"]),
        (("a:0", 2, 0), ["--coordinator=a:0", "1 to 65535"]),
        (("a:65536", 2, 0), ["--coordinator=a:65536"]),
        (("a:port", 2, 0), ["--coordinator=a:port"]),
        (("::1:80", 2, 0), ["--coordinator=::1:80"]),  # IPv6 wants brackets
        (("", 2, 0), ["--coordinator="]),
    ],
)
def test_wrong_flags_are_named(flags, words):
    with pytest.raises(UserError) as error:
        clusters.from_flags(*flags)
    for word in words:
        assert word in str(error.value)


def test_flags():
    assert place(clusters.from_flags("[::1]:80", 2, 1)) == ("[::1]:80", 2, 1)
    assert clusters.from_flags("a:1", 1, 0) is None


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (SLURM | {"SLURM_PROCID": ""}, "SLURM_PROCID=''"),
        (SLURM | {"SLURM_NTASKS": "many"}, "SLURM_NTASKS='many'"),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "node1"}, "JAX_COORDINATOR_ADDRESS=node1"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"} | NO_TPU, "TPU_WORKER_ID=''"),
    ],
)
def test_wrong_variables_are_named(environ, words):
    with pytest.raises(UserError, match=words):
        detect(environ)
