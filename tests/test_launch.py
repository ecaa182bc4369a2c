"""launch/: what the scripts would run, and how they behave with a cloud, a queue and a training that fail.

The cloud and the queue are the programs in tests/launch_fakes; the processes, their signals and exit codes are real.
The cloud's workers get the last commit, as real ones would: a change to tpu_worker.sh counts once it is committed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dualtoken_jax.metric_writer import read_metrics

ROOT = Path(__file__).parents[1]
FAKES, EXPECTED = ROOT / "tests" / "launch_fakes", ROOT / "tests" / "data" / "launch"
SCRIPTS = sorted([*(ROOT / "launch").rglob("*.sh"), ROOT / "launch" / "slurm.sbatch"])
SUBMIT = (sys.executable, "launch/gke/submit.py")
SLICE = ("--zone=us-west4-a", "--type=v5litepod-16", "--storage=gs://my-bucket")
PODS = ("--accelerator=tpu-v5-lite-podslice", "--topology=16x16")
FLAGS = ("--config=configs/tokenizer.py:so400m_384", "--config.data.path=gs://my data/shards")


@pytest.fixture
def place(tmp_path):
    """A folder for the fakes' state: cloud/ and plan/."""
    (tmp_path / "cloud").mkdir()
    (tmp_path / "plan").mkdir()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    fakes = {"FAKE_CLOUD": str(place / "cloud"), "FAKE_PLAN": str(place / "plan"), "RETRY_SECONDS": "0"}
    path = f"{FAKES}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | fakes | {"PATH": path}


def start(place: Path, *command, **more) -> subprocess.Popen:
    more = {"env": environment(place), "cwd": ROOT} | more
    return subprocess.Popen(list(map(str, command)), text=True, stdout=-1, stderr=subprocess.STDOUT, **more)


def run(place: Path, *command, **more) -> tuple[int, str]:
    """Exit code and output."""
    process = start(place, *command, **more)
    try:
        output = process.communicate(timeout=120)[0]
    finally:  # babysit would go on for ever
        process.kill()
    return process.returncode, output


def plan(place: Path, **steps: str) -> None:
    """What the fake training does: p0_2="75" is exit code 75 for process 0 at its second start."""
    for step, what in steps.items():
        (place / "plan" / step.removeprefix("p").replace("_", ".")).write_text(what + "\n")


def starts(place: Path) -> list[str]:
    """The starts so far, as PROCESS.COUNT."""
    log = place / "plan" / "log"
    return sorted(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else []


def cloud_calls(place: Path) -> list[str]:
    """Verbs of the calls that changed something."""
    calls = [line.split()[3] for line in (place / "cloud" / "calls").read_text().splitlines()]
    return [call for call in calls if call in ("create", "delete")]


def test_there_are_scripts():
    assert len(SCRIPTS) == 6 and all(os.access(file, os.X_OK) for file in SCRIPTS if file.suffix == ".sh")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_shell_is_clean(place, script):
    assert run(place, "bash", "-n", script) == (0, "")
    assert "set -euo pipefail" in script.read_text()
    if shutil.which("shellcheck"):
        assert run(place, "shellcheck", script) == (0, "")


DRY_RUNS = {
    "tpu_vm_create.txt": ("launch/tpu_vm.sh", "create", "--name=my-run", *SLICE, "--slices=2", "--project=my-project"),
    "tpu_vm_babysit.txt": ("launch/tpu_vm.sh", "babysit", "--name=my-run", *SLICE, "--on-demand", "--", *FLAGS),
    "tpu_vm_delete.txt": ("launch/tpu_vm.sh", "delete", "--name=my-run", "--zone=us-west4-a"),
    "local.txt": ("launch/local.sh", "2", "--gpu-per-process", "--", "--workdir=runs/a", *FLAGS),
    "slurm.txt": ("bash", "launch/slurm.sbatch", "--workdir=runs/a", *FLAGS),
    "jobset.yaml": (*SUBMIT, "run", "--name=my-run", "--image=my/image:1", "--bucket=my-bucket", *PODS, "--", *FLAGS),
    "jobset_claim.yaml": (*SUBMIT, "run", "--name=my-run", "--image=i", "--claim=nfs", "--slices=2", *PODS),
    "kueue.yaml": (*SUBMIT, "queue", *PODS, "--quota=256"),
    "xpk.txt": (
        *("launch/gke/xpk.sh", "--name=my-run", "--cluster=my-cluster", "--type=v5litepod-256"),
        *("--image=my/image:1", "--storage=my-storage", "--xpk-flag=--zone=us-west4-a", "--", *FLAGS),
    ),
}


@pytest.mark.parametrize("file", DRY_RUNS)
def test_dry_run(place, file):
    words = list(DRY_RUNS[file])
    words.insert(words.index("--") if "--" in words else len(words) - 3 * (file == "slurm.txt"), "--dry-run")
    code, output = run(place, *words)
    assert code == 0, output
    assert output == (EXPECTED / file).read_text(), f"if this is meant, write it to {EXPECTED / file}:\n{output}"
    assert not any((place / "cloud").iterdir()) and starts(place) == []


def tpu_vm(place: Path, command: str, *options) -> tuple[int, str]:
    return run(place, "launch/tpu_vm.sh", command, "--name=my-run", *SLICE, *options)


def babysit(place: Path, *options) -> tuple[int, str]:
    return tpu_vm(place, "babysit", "--poll=0", *options, "--", "--config=configs/tokenizer.py:so400m_384", "--x=a b")


@pytest.mark.parametrize("how", ["suspended", "node"])
def test_babysit_recreates_what_was_preempted_and_resumes(place, how):
    plan(place, p0_1=f"preempt {how}", p1_1="hang", p0_2="75", p1_2="75")
    code, output = babysit(place)
    assert code == 0, output
    assert cloud_calls(place) == ["create", "delete", "create"]
    assert starts(place) == ["0.1", "0.2", "0.3", "1.1", "1.2", "1.3"]
    for line in (place / "plan" / "log").read_text().splitlines():
        _, flags = line.split(" ", 1)
        workdir = f"--workdir={place}/cloud/worker{line[0]}/dualtoken/shared/my-run"  # in the bucket, both times
        assert flags == f"-m dualtoken_jax.main {workdir} --config=configs/tokenizer.py:so400m_384 --x=a b"
    assert "restart 2 of 100" in output and "finished" in output.splitlines()[-1]
    before = starts(place)
    assert babysit(place)[0] == 0  # main finds out that it is finished
    assert starts(place) == [*before[:3], "0.4", *before[3:], "1.4"]
    assert cloud_calls(place) == ["create", "delete", "create"]


def test_babysit_stops_at_an_error_that_a_restart_does_not_mend(place):
    plan(place, p0_1="1", p1_1="hang")
    code, output = babysit(place)
    assert code == 1 and "exit code 1" in output and starts(place) == ["0.1", "1.1"]
    assert (place / "cloud/worker1/dualtoken/runs/my-run/exit_code").read_text() == "75\n"  # stopped, and it could save
    assert babysit(place)[0] == 0  # mended: a new command begins anew
    assert starts(place) == ["0.1", "0.2", "1.1", "1.2"]


def test_babysit_gives_up(place):
    plan(place, **{f"p{process}_{count}": "75" for process in (0, 1) for count in (1, 2, 3, 4)})
    code, output = babysit(place, "--max-restarts=2")
    assert code == 75 and "gave up after 2 restarts" in output and len(starts(place)) == 6


def test_every_command_twice_is_once(place):
    for _ in range(2):
        assert tpu_vm(place, "create")[0] == 0
    for _ in range(2):  # to ACTIVE
        tpu_vm(place, "status")
    plan(place, p0_1="hang", p1_1="hang")
    for _ in range(2):
        assert tpu_vm(place, "run", "--", "--config=c")[0] == 0
    wait_for(lambda: starts(place) == ["0.1", "1.1"])
    status = tpu_vm(place, "status")[1]
    assert status.splitlines() == ["my-run is ACTIVE", *["dualtoken-worker my-run running"] * 2]
    for _ in range(2):
        assert tpu_vm(place, "stop")[1].count("exited 75") == 2
    for _ in range(2):
        assert tpu_vm(place, "delete")[0] == 0
    assert cloud_calls(place) == ["create", "delete"] and starts(place) == ["0.1", "1.1"]


def test_worker_knows_a_training_that_left_no_exit_code(place):
    home = place / "home"
    (home / "dualtoken" / "code").mkdir(parents=True)
    (home / "dualtoken" / "venv" / "bin").mkdir(parents=True)
    (home / "dualtoken" / "venv" / "bin" / "python").symlink_to(FAKES / "python")
    env = environment(place) | {"HOME": str(home), "JAX_PROCESS_ID": "0"}

    def worker(action: str) -> str:
        return run(place, "launch/tpu_worker.sh", action, "my-run", env=env)[1].removeprefix("dualtoken-worker my-run ")

    assert worker("status") == "absent\n"
    plan(place, p0_1="hang")
    assert worker("start") == "running\n"
    wait_for(lambda: (place / "plan" / "0.hangs").exists())
    wrapper = (home / "dualtoken" / "runs" / "my-run" / "pid").read_text().strip()
    subprocess.run(["bash", "-c", f"kill -STOP {wrapper}; pkill -KILL -P {wrapper}; kill -KILL {wrapper}"], check=True)
    wait_for(lambda: worker("status") != "running\n")
    assert worker("status") == "exited 137\n"
    assert worker("start") in ("running\n", "exited 0\n")
    wait_for(lambda: worker("status") == "exited 0\n")


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "words, message",
    [
        (("launch/tpu_vm.sh", "frob"), "COMMAND is create"),
        (("launch/tpu_vm.sh", "create", "--name=a", "--zone=b"), "create needs --type"),
        (("launch/tpu_vm.sh", "run", "--name=A", "--zone=b", "--storage=gs://c"), "--name=A"),
        (("launch/tpu_vm.sh", "run", "--name=a", "--zone=b", "--storage=gs://c;d"), "--storage=gs://c;d"),
        (("launch/tpu_vm.sh", "run", "--name=a", "--zone=b", "--storage=gs://c", "--", "--workdir=d"), "--workdir"),
        (("launch/tpu_vm.sh", "create", "--name=a", "--zone=b", "--type=tpu7x-8"), "--runtime-version"),
        (("launch/local.sh", "--config=x"), "unknown argument --config=x"),
        (("launch/local.sh",), "number of processes"),
        (("launch/gke/xpk.sh", "--name=a"), "--cluster is missing"),
        ((*SUBMIT, "run", "--name=A", *PODS), "'A': small letters"),
        ((*SUBMIT, "queue", "--accelerator=a", "--topology=16", "--quota=1"), "'16' is no topology"),
        ((*SUBMIT, "run", "--name=a", "--image=i", "--claim=c", *PODS, "--chips-per-host=3"), "not a multiple"),
        ((*SUBMIT, "run", "--name=a", "--image=i", "--claim=c", *PODS, "--", "--workdir=w"), "--workdir"),
    ],
)
def test_wrong_usage_is_2_and_says_what(place, words, message):
    code, output = run(place, *words)
    assert code == 2 and message in output


def local(place: Path, *options) -> tuple[str, ...]:
    python, logs = f"PYTHON={FAKES / 'python'}", f"--logs={place / 'logs'}"
    return ("env", python, "launch/local.sh", 2, logs, "--backoff=0", "--grace=1", *options, "--", "-x")


@pytest.mark.parametrize(
    "steps, code, count",
    [
        ({}, 0, 2),
        ({"p0_1": "75", "p1_1": "75"}, 0, 4),
        ({"p0_1": "hang", "p1_1": "kill"}, 0, 4),  # the one left behind is killed
        ({"p0_1": "late 1", "p1_1": "kill"}, 0, 4),  # an error that follows from the kill
        ({"p0_1": "hang", "p1_1": "1"}, 1, 2),
        ({"p0_1": "late 1", "p1_1": "75"}, 1, 2),
        ({"p0_1": "2", "p1_1": "2"}, 2, 2),
        ({f"p{process}_{count}": "75" for process in (0, 1) for count in (1, 2, 3)}, 75, 6),
    ],
)
def test_local_restarts_when_it_helps(place, steps, code, count):
    plan(place, **steps)
    ended, output = run(place, *local(place, "--max-restarts=2"))
    assert (ended, len(starts(place))) == (code, count), output
    assert {file.name for file in (place / "logs").glob("*.log")} == {"process_0.log", "process_1.log"}


def test_local_hands_sigterm_on_and_runs_once(place):
    plan(place, p0_1="hang", p1_1="hang")
    first = start(place, *local(place))
    wait_for(lambda: all((place / "plan" / f"{process}.hangs").exists() for process in (0, 1)))
    assert run(place, *local(place))[0] == 1
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=30)
    assert first.returncode == 75 and starts(place) == ["0.1", "1.1"]


@pytest.mark.slow
def test_two_real_processes_train_through_a_kill_and_a_notice(tmp_path):
    """The real command: a process dies and the others are started again; a notice makes them save, and they go on."""
    steps, workdir, logs = 60, tmp_path / "run", tmp_path / "logs"
    training = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "PYTHONPATH": "tests"}
    flags = ("--config=tests/chaos_config.py", f"--config.train.steps={steps}", f"--workdir={workdir}")
    command = ("launch/local.sh", 2, f"--logs={logs}", "--backoff=0", "--grace=60", "--", *flags)
    saved = lambda: {int(file.name) for file in (workdir / "checkpoints").glob("*") if file.name.isdigit()}  # noqa: E731
    first = start(tmp_path, *command, env=os.environ | training)
    wait_for(saved, 300)
    main = subprocess.run(["pgrep", "-P", str(first.pid), "-f", "dualtoken_jax.main"], capture_output=True, text=True)
    os.kill(int(main.stdout.split()[-1]), signal.SIGKILL)
    before = max(saved())
    wait_for(lambda: max(saved()) > before, 300)
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=300)[0]
    assert first.returncode == 75, output
    last = start(tmp_path, *command, env=os.environ | training)
    output, log = last.communicate(timeout=300)[0], (logs / "process_0.log").read_text()
    assert last.returncode == 0, f"{output}\n{log[-4000:]}"
    assert [line["step"] for line in read_metrics(workdir) if "loss" in line] == list(range(1, steps + 1))
    assert log.count("resuming from step") == 2 and max(saved()) == steps


@pytest.mark.parametrize(
    "steps, restarts, code, requeued",
    [
        ({}, 0, 0, False),
        ({"p0_1": "75", "p1_1": "75"}, 0, 0, True),
        ({"p0_1": "kill", "p1_1": "75"}, 0, 0, True),
        ({"p0_1": "75", "p1_1": "1"}, 0, 1, False),  # srun's own code is 75
        ({"p0_1": "kill", "p1_1": "2"}, 0, 2, False),
        ({"p0_1": "3"}, 0, 3, False),
        ({"p0_1": "75"}, 100, 75, False),
    ],
)
def test_slurm_goes_back_to_the_queue_when_it_helps(place, steps, restarts, code, requeued):
    plan(place, **steps)
    job = {"SLURM_SUBMIT_DIR": str(place), "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    python = {"PYTHON": str(FAKES / "python")}
    ended, output = run(place, "bash", "launch/slurm.sbatch", "--x=a b", env=environment(place) | job | python)
    assert ended == code, output
    asked = place / "plan" / "scontrol"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if requeued else "")
    assert "-m dualtoken_jax.main --x=a b" in (place / "plan" / "log").read_text()


def submit(place: Path) -> tuple[int, str]:
    return run(place, *SUBMIT, "run", "--name=my-run", "--image=my/image:1", "--bucket=my-bucket", *PODS, "--", *FLAGS)


def test_submit_resumes_what_failed_and_leaves_the_rest_alone(place):
    jobset, applied = place / "cloud" / "jobset", place / "cloud" / "applied"
    assert submit(place)[0] == 0 and applied.read_text() == (EXPECTED / "jobset.yaml").read_text()
    answers = {"": "my-run is submitted already\n", "Completed": "my-run is finished already\n", "Failed": ""}
    for state, answer in answers.items():
        applied.unlink(missing_ok=True)
        jobset.write_text(state)
        assert submit(place) == (0, answer) and applied.exists() == (state == "Failed")
    deleted = [line for line in (place / "cloud" / "calls").read_text().splitlines() if line.startswith("delete")]
    assert deleted == ["delete jobset my-run --namespace=default --wait"]


def documents(file: str) -> list[dict]:
    return list(pytest.importorskip("yaml").safe_load_all((EXPECTED / file).read_text()))


def test_jobset_says_what_restarts_and_what_fails():
    (jobset,) = documents("jobset.yaml")
    spec = jobset["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 100
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (slices,) = spec["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (1, 64, 64, 0)
    preempted, wrong = job["podFailurePolicy"]["rules"]
    assert preempted == {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert wrong["action"] == "FailJob" and wrong["onExitCodes"]["values"] == [1, 2]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert wrong["onExitCodes"]["containerName"] == container["name"]
    assert container["command"] == ["python", "-m", "dualtoken_jax.main"]  # no shell: it gets the SIGTERM
    assert container["args"] == ["--workdir=/shared/my-run", *FLAGS]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 60
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_run_and_queue_name_the_same_nodes():
    flavor, cluster, local_queue = documents("kueue.yaml")
    (jobset,) = documents("jobset.yaml")
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert flavor["spec"]["nodeLabels"] == pod["nodeSelector"]
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local_queue["metadata"]["name"]
    assert jobset["metadata"]["namespace"] == local_queue["metadata"]["namespace"]
    assert local_queue["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    (group,) = cluster["spec"]["resourceGroups"]
    assert group["coveredResources"] == list(pod["containers"][0]["resources"]["limits"])
    assert group["flavors"][0]["name"] == flavor["metadata"]["name"]


@pytest.mark.parametrize("file", ["jobset.yaml", "jobset_claim.yaml"])
def test_jobset_fits_the_published_schema(file):
    """JobSet v1alpha2, Job and Pod know every field, with that type; rules between fields are not checked."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    (jobset,) = documents(file)
    assert kept(jobset, models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict()) == []
    jobset["spec"]["failurePolicy"]["maxRestart"] = 1
    assert kept(jobset, models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict()) == ["/spec/failurePolicy/maxRestart"]


def kept(given, read, path: str = "") -> list[str]:
    """Paths of what is in `given` and is not the same in `read`."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [line for key in given for line in kept(given[key], read.get(key), f"{path}/{key}")]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        return [line for i, pair in enumerate(zip(given, read, strict=True)) for line in kept(*pair, f"{path}/{i}")]
    return [] if given == read else [path]


def test_container_gets_the_pinned_versions_and_the_signal():
    text = (ROOT / "launch" / "gke" / "Dockerfile").read_text()
    assert text.splitlines()[1].startswith("FROM python:3.12") and "-r requirements.txt 'jax[tpu]'" in text
    assert 'ENTRYPOINT ["python", "-m", "dualtoken_jax.main"]' in text
