"""The job scripts: dry runs anywhere; stop, requeue and resume with real runs. Schedulers and launchers are stand-ins
on PATH: a launcher executes what follows its options, once; a queue command notes its arguments. Open MPI, where it is
installed, is real.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, read_json

from unet.cli import main

SCRIPTS = ROOT / "scripts"
OPENMPI = shutil.which("mpirun")
# name -> launcher, its options on one node, variables of a job
JOBS: dict[str, tuple[str, str, dict[str, str]]] = {
    "thetagpu": ("mpirun", "-n 8 --map-by ppr:8:node", {"COBALT_JOBID": "11"}),
    "polaris": ("mpiexec", "-n 4 --ppn 4", {"PBS_JOBID": "12.polaris-pbs-01"}),
    "slurm": ("srun", "--kill-on-bad-exit=1", {"SLURM_JOB_ID": "13", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}),
    "gaudi": ("mpirun", "--allow-run-as-root --tag-output --merge-stderr-to-stdout --bind-to core", {}),
}
QUEUES = ("qsub", "sbatch", "scontrol")
LAUNCHER = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >>"$FAKES/launched"
while [[ $1 != "$PYTHON" ]]; do shift; done
exec "$@"
"""
QUEUE = """#!/bin/bash
{ basename "$0"; printf '%s\\n' "$@" "RUN_NAME=$RUN_NAME" "REQUEUES=$REQUEUES"; } >"$FAKES/queued.$$"
exit "${QUEUE_FAILS:-0}"
"""
slow = pytest.mark.slow


def first_fast(*names: str) -> list[Any]:
    """The first name in every test run, the others with -m slow."""
    return [names[0], *(pytest.param(name, marks=slow) for name in names[1:])]


@pytest.fixture(scope="module")
def settings(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A very small network on made patients, the cache made."""
    cache = str(tmp_path_factory.mktemp("scripts") / "cache_16")
    assert main(["preprocess", "--data", str(phantoms), "--cache", cache, "--image-size", "16", "--quiet"]) == 0
    return ["--data", str(phantoms), "--cache", cache, *TINY, "--evaluate-every", "0", "--quiet"]


class Job:
    """A script as a job of its scheduler in an empty folder, on this machine's CPU."""

    def __init__(self, folder: Path, settings: list[str]) -> None:
        self.folder, self.settings = folder, [*settings, "--device", "cpu"]
        self.notes, commands = folder / "notes", folder / "commands"
        self.notes.mkdir()
        commands.mkdir()
        for name, text in {
            **dict.fromkeys(("mpirun", "mpiexec", "srun"), LAUNCHER),
            **dict.fromkeys(QUEUES, QUEUE),
        }.items():
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        schedulers = ("SLURM", "PBS", "COBALT", "OMPI", "PMI", "RUN_NAME", "MASTER", "DRY_RUN")
        self.variables = {
            **{key: value for key, value in os.environ.items() if not key.startswith(schedulers)},
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "FAKES": str(self.notes),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, script: str, *words: object, inside: bool = True, **variables: str) -> subprocess.Popen[str]:
        job = JOBS[script][2] if inside else {}
        return subprocess.Popen(
            [str(SCRIPTS / f"{script}.sh"), *map(str, words)],
            cwd=self.folder,
            env={**self.variables, **job, **variables},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below a shell's background job
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *words: object, **how: Any) -> tuple[int, str, str]:
        return ended(self.start(script, *words, **how))

    def train(self, script: str, *words: object, **how: Any) -> tuple[int, str, str]:
        return self.run(script, *self.settings, *words, **how)

    def steps(self) -> int:
        """Log lines of the only run so far."""
        return sum(path.read_text().count('"step"') for path in self.folder.glob("performance/*/metrics.jsonl"))

    @property
    def launched(self) -> list[str]:
        path = self.notes / "launched"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def queued(self) -> list[list[str]]:
        return [path.read_text().splitlines() for path in sorted(self.notes.glob("queued.*"), key=age)]

    def status(self, run: str) -> str:
        return str(read_json(self.folder / "performance" / run / "status.json")["status"])


def age(path: Path) -> int:
    return path.stat().st_mtime_ns


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.02)


@pytest.fixture
def job(tmp_path: Path, settings: list[str]) -> Job:
    return Job(tmp_path, settings)


@pytest.mark.parametrize("script", [*JOBS, "job"])
def test_the_syntax(script: str) -> None:
    path = SCRIPTS / f"{script}.sh"
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
    assert bool(path.stat().st_mode & stat.S_IXUSR) == (script != "job")


@pytest.mark.parametrize("script", first_fast(*JOBS))
def test_a_dry_run_anywhere(script: str, job: Job) -> None:
    """No scheduler, no card, flags of the machine and of its processes: one step here, and nothing is kept."""
    typed = ["--hpu", "--use_lazy_mode"] if script == "gaudi" else ["--cuda", "--cuda_devices", 0, 1]
    words = [*job.settings[:-2], *typed, "--world-size", 8, "--run_name", "a name", "--distributed"]
    code, out, err = job.run(script, *words, inside=False, DRY_RUN="1")
    assert code == 0, err
    assert "one step was made and nothing was kept" in out
    line = next(line for line in out.splitlines() if line.startswith("launch line: "))
    launcher, options, _ = JOBS[script]
    assert line.startswith(f"launch line: {launcher} ")
    for word in (options, " -m unet train ", "--image-size 16", "--world-size 8", r"--run-name a\ name"):
        assert word in line
    assert "--dry-run" not in line
    assert "--resume" not in line
    assert sorted(path.name for path in job.folder.iterdir()) == ["commands", "notes"]
    assert not list(job.notes.iterdir())


@pytest.mark.parametrize("script", first_fast(*JOBS))
def test_a_mistake_is_found_before_the_launch(script: str, job: Job) -> None:
    code, _, err = job.train(script, "--epochz", 3)
    assert code == 2
    assert "did you mean --epochs?" in err
    assert "the dry run failed (2)" in err
    assert (job.launched, job.queued) == ([], [])
    code, out, _ = job.train(script, "--epochz", 3, DRY_RUN="1")
    assert code == 2
    assert f"launch line: {JOBS[script][0]} " in out


def test_outside_a_job_the_script_submits_itself(job: Job) -> None:
    for script, queue in (("thetagpu", "qsub"), ("polaris", "qsub"), ("slurm", "sbatch")):
        assert job.run(script, "--data", "a set", "--epochs", 3, inside=False, RUN_NAME="r", WALL_MINUTES="90")[0] == 0
        words = job.queued[-1]
        assert words[0] == queue
        assert words[-7:-2] == [str(SCRIPTS / f"{script}.sh"), "--data", "a set", "--epochs", "3"]
        if script == "polaris":
            assert words[words.index("-l") + 1] == "select=1:system=polaris"
            assert "walltime=5400" in words
            assert "walltime=01:00:00" not in words
            assert "--" in words
        if script == "thetagpu":
            assert words[1:3] == ["-t", "90"]
            assert words[words.index("--env") + 1].startswith("RUN_NAME=r:REQUEUES=0:MAX_REQUEUES=20:")
    assert job.launched == []


def test_nodes_are_counted_and_the_first_is_the_meeting_place(job: Job) -> None:
    nodes = job.folder / "nodes"
    nodes.write_text("node7\nnode7\nnode8\n")
    for script, variable, count in (("thetagpu", "COBALT_NODEFILE", 16), ("polaris", "PBS_NODEFILE", 8)):
        out = job.run(script, "--nonsense", DRY_RUN="1", **{variable: str(nodes)})[1]
        assert f" -n {count} " in out


@pytest.mark.slow
@pytest.mark.parametrize(("script", "variable"), [("slurm", "SLURM_SUBMIT_DIR"), ("polaris", "PBS_O_WORKDIR")])
def test_a_script_that_the_scheduler_has_copied(script: str, variable: str, job: Job) -> None:
    copy = shutil.copy(SCRIPTS / f"{script}.sh", job.folder / "spooled")
    variables = {**job.variables, variable: str(ROOT), "DRY_RUN": "1"}
    done = subprocess.run([copy, "--nonsense"], cwd=job.folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"launch line: {JOBS[script][0]} " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", first_fast("slurm", "gaudi"))
def test_a_signal_stops_and_requeues_and_the_next_start_resumes(script: str, job: Job) -> None:
    words = [*job.settings, "--epochs", 25, "--mode", "train", "--run-name", "r"]
    process = job.start(script, *words)
    wait_for(job.steps, process)
    process.send_signal(signal.SIGUSR1)
    code, _, err = ended(process)
    if script == "gaudi":  # starts itself again
        assert code == 0, err
    else:
        assert code == 130, err
        assert job.status("r") == "interrupted"
        assert job.queued == [["scontrol", "requeue", "13", "RUN_NAME=r", "REQUEUES=1"]]
        code, _, err = job.run(script, *words, SLURM_RESTART_COUNT="1")
        assert code == 0, err
        assert "start 2 of run r" in err
    assert job.status("r") == "done"
    first, second = job.launched
    assert "--resume" not in first
    assert second.endswith("--run-name r --resume")
    assert "resumed from" in (job.folder / "performance/r/run.log").read_text()
    assert read_json(job.folder / "performance/r/summary.json")["epochs"] == 25
    assert len(job.queued) == (script == "slurm")


@slow
def test_the_end_of_a_cobalt_job_is_known_beforehand(job: Job) -> None:
    """--max-time from COBALT_ENDTIME; qsub gets the same arguments, run name and the next number."""
    words = [*job.settings, "--epochs", 300, "--evaluate-every", 1, "--overwrite"]
    code, _, err = job.run("thetagpu", *words, COBALT_ENDTIME=str(int(time.time()) + 10), MARGIN_MINUTES="0")
    assert code == 130, err
    assert job.status("run-11") == "interrupted"
    (queued,) = job.queued
    assert queued[-2:] == ["RUN_NAME=run-11", "REQUEUES=1"]
    assert queued[queued.index(str(SCRIPTS / "thetagpu.sh")) + 1 : -2] == [str(word) for word in words]
    words[words.index(300)] = 1  # over at once
    code, _, err = job.run("thetagpu", *words, RUN_NAME="run-11", REQUEUES="1", COBALT_JOBID="14")
    assert code == 0, err
    assert "--overwrite" in job.launched[0]
    assert "--overwrite" not in job.launched[1]
    assert len(job.queued) == 1


@slow
def test_the_end_of_a_pbs_job_is_known_beforehand(job: Job) -> None:
    words = [*job.settings, "--epochs", 300, "--evaluate-every", 1, "--run-name", "r", "--out", "elsewhere"]
    code, _, err = job.run("polaris", *words, WALL_MINUTES="5")  # nothing is left after the margin: the least, 6 s
    assert code == 130, err
    assert " --max-time 0.10 " in job.launched[0]
    (queued,) = job.queued
    assert queued[-2:] == ["RUN_NAME=r", "REQUEUES=1"]
    assert queued[queued.index("--") + 2 : -2] == [str(word) for word in words]
    assert job.run("polaris", *words, "--max-steps", 1, REQUEUES="1")[0] == 0
    assert job.launched[1].endswith("--run-name r --resume")


@slow
@pytest.mark.parametrize("script", ["slurm", "gaudi"])
def test_the_limit_of_requeues(script: str, job: Job) -> None:
    code, _, err = job.train(
        script, "--epochs", 9, "--max-time", 0.0001, MAX_REQUEUES="1", REQUEUES="1", SLURM_RESTART_COUNT="1"
    )
    assert code == 130
    assert "MAX_REQUEUES=1 is reached" in err
    assert (len(job.launched), job.queued) == (1, [])


@slow
def test_a_run_that_gets_nowhere_ends(job: Job) -> None:
    code, _, err = job.train("gaudi", "--epochs", 99, "--max-time", 0.0001, MAX_REQUEUES="2")
    assert code == 130
    assert [line for line in err.splitlines() if "MAX_REQUEUES=2 is reached" in line]
    assert len(job.launched) == 3


@slow
@pytest.mark.parametrize(
    ("script", "number"), [*((script, signal.SIGTERM) for script in JOBS), ("slurm", signal.SIGINT)]
)
def test_a_job_that_somebody_ends_is_saved_and_stays_away(script: str, number: int, job: Job) -> None:
    process = job.start(script, *job.settings, "--epochs", 300, "--run-name", "r")
    wait_for(job.steps, process)
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == 130, err
    assert "ended from outside" in err
    assert job.status("r") == "interrupted"
    assert (len(job.launched), job.queued) == (1, [])


@slow
@pytest.mark.parametrize("script", ["polaris", "gaudi"])
def test_a_failure_is_not_requeued(script: str, job: Job) -> None:
    """The weights' name is taken: a dry run keeps nothing and does not mind."""
    (job.folder / "taken.pt").write_bytes(b"")
    code, _, err = job.train(script, "--epochs", 1, "--weights-file", "./taken.pt")
    assert code == 2
    assert "taken.pt exists" in err
    assert (len(job.launched), job.queued) == (1, [])


@slow
def test_a_target_that_is_not_reached_is_not_requeued(job: Job) -> None:
    assert job.train("slurm", "--epochs", 1, "--target", 0.9999)[0] == 3
    assert (len(job.launched), job.queued) == (1, [])


@slow
def test_a_signal_in_the_dry_run_and_a_queue_that_refuses(job: Job) -> None:
    """The time is up before the run began: queued again all the same; that it could not be is said."""
    process = job.start("slurm", *job.settings, QUEUE_FAILS="1")
    time.sleep(1)
    process.send_signal(signal.SIGUSR1)
    code, _, err = ended(process)
    assert code == 1
    assert "could not be queued again" in err
    assert job.launched == []
    assert len(job.queued) == 1


@slow
@pytest.mark.skipif(not OPENMPI, reason="Open MPI is not installed")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="binds two processes to a core each")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_pass_through_open_mpi_to_two_processes(number: int, job: Job) -> None:
    (job.folder / "commands" / "mpirun").unlink()
    words = [*job.settings, "--epochs", 100, "--run-name", "r"]
    process = job.start("gaudi", *words, CARDS="2", CORES="1", OMPI_MCA_rmaps_base_oversubscribe="1")
    wait_for(job.steps, process)
    process.send_signal(number)
    code, _, err = ended(process)
    again = number == signal.SIGUSR1
    assert code == (0 if again else 130), err
    assert job.status("r") == ("done" if again else "interrupted")
