"""Who joins others at the start of a run."""

import pytest

from dualtoken_jax.distributed import expects_others

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[001-002]", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "has_tpu", "expected"),
    [
        ({}, False, False),  # a laptop
        ({"JAX_COORDINATOR_ADDRESS": "host:1234"}, False, True),
        ({}, True, True),  # a TPU VM: only the metadata server knows
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, False),  # a machine with a TPU and no metadata server
        ({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, True, True),  # GKE
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False, False),  # JAX would not detect a cluster without its TPU
        (SLURM | {"SLURM_NTASKS": "16"}, False, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, False, False),  # the batch script itself, not what srun starts
        ({"OMPI_COMM_WORLD_SIZE": "2"}, False, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, False, True),
    ],
)
def test_only_processes_of_a_cluster_expect_others(environment, has_tpu, expected):
    assert expects_others(environment, has_tpu) is expected
