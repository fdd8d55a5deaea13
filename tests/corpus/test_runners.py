"""Processes, ranks and Ray actors on one corpus, and what happens when they are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from support.corpora import (
    COMMAND,
    Watcher,
    alive,
    children,
    contents,
    finish,
    kill_group,
    make_job,
    rows_of,
    save_model,
    start,
    wait_until,
    write_clips,
)
from typer.testing import CliRunner

from mimi_hf.cli import app
from mimi_hf.corpus.jobs.tokenize import ExampleError
from mimi_hf.corpus.runners.local import run_here, run_processes
from mimi_hf.corpus.runners.ray import run_ray

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
CLIPS, SHARD, SHARDS = 60, 4, 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Recordings, a model that takes a while, the arguments of a command, and what an undisturbed run gives."""
    folder = tmp_path_factory.mktemp("corpus")
    write_clips(folder / "in", CLIPS, (1.0, 4.0))
    (folder / "in" / "broken.wav").write_text("no audio")
    save_model(folder / "model", num_filters=8)
    arguments = ["-m", folder / "model", "-k", 4, "--shard-size", SHARD, "--device", "cpu"]
    finish(start("tokenize", folder / "in", folder / "out", *arguments))
    assert len(rows_of(folder / "out")) == CLIPS
    return folder, arguments


def tokenize(corpus, output, *more, **environment):
    folder, arguments = corpus
    return start("tokenize", folder / "in", output, *arguments, *more, **environment)


def job_of(corpus, output, **options):
    """What the command makes, in this process, which has loaded all it needs."""
    torch.set_num_threads(1)
    return make_job(corpus[0] / "in", output, corpus[0] / "model", SHARD, **options)


def assert_goes_on(corpus, output):
    """The next run does what is left, and all is as if nothing had happened."""
    job = job_of(corpus, output)
    job.begin()
    assert job.unfinished()
    run_here(job, job.unfinished(), "cpu")
    job.finish()
    job.output.remove_unfinished(alone=True)
    assert_undisturbed(corpus, output)


def assert_undisturbed(corpus, output):
    assert contents(output) == contents(corpus[0] / "out")
    assert not (output / ".unfinished").exists()


def count(output):
    """How many shards are done."""
    return len(list(output.glob("shards/*.json")))


# Processes


def test_a_second_run_does_nothing(corpus):
    output = corpus[0] / "out"
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    told = json.loads(finish(tokenize(corpus, output, "--num-proc", 2, "--json", "--quiet")))
    assert (told["made_now"], told["left"], told["totals"]["examples"]) == (0, 0, CLIPS)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == times


@needs_proc
def test_a_run_that_is_killed_at_any_moment_goes_on(corpus, tmp_path):
    output = tmp_path / "out"
    chance = random.Random()
    with Watcher(output):
        for processes, shards in ((1, 0), (2, 2), (1, 7)):
            run = tokenize(corpus, output, "--num-proc", processes)
            wait_until(lambda: (output / "manifest.json").exists() and count(output) >= shards)  # noqa: B023
            time.sleep(chance.uniform(0, 0.3))
            workers = children(run.pid)
            assert len(workers) == (processes if processes > 1 else 0)
            run.kill()
            run.wait()  # and not for its pipes, which an orphan would hold
            wait_until(lambda: not any(map(alive, workers)), 20)  # noqa: B023 (they end by themselves)
        assert count(output) < SHARDS
        assert_goes_on(corpus, output)


@needs_proc
def test_workers_that_are_killed_are_replaced_and_errors_end_all(corpus, tmp_path):
    output = tmp_path / "out"
    job = job_of(corpus, output, strict=True)
    job.begin()
    killed, seen = [], []

    def watch(seconds, done):
        seen.append(done)
        if done >= 2 and not killed:
            killed.extend(children(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    with Watcher(output):
        with pytest.raises(ExampleError, match=r"^broken\.wav: "):  # in the last shard
            run_processes(job, job.unfinished(), 2, "cpu", watch)
        assert len(killed) == 2 and seen == sorted(seen)
        assert count(output) > 2 and SHARDS - 1 in job.unfinished()
        wait_until(lambda: not children(os.getpid()), 10)
        assert_goes_on(corpus, output)


class Deadly:
    """A job whose workers are killed before they finish anything: by the kernel, for example, for their memory."""

    def __init__(self, folder):
        self.folder, self.shards = str(folder), [{}, {}]

    def load(self, device):
        return None

    def run(self, model, index, progress):
        Path(self.folder, f"attempt-{time.time_ns()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def unfinished(self):
        return [0, 1]


def test_workers_that_die_again_and_again_end_the_run(tmp_path):
    with pytest.raises(RuntimeError, match=r"died 3 times without finishing a shard.*--num-proc"):
        run_processes(Deadly(tmp_path), [0, 1], 1)
    assert len(list(tmp_path.iterdir())) == 3


@needs_proc
def test_an_interrupt_ends_all_and_the_next_run_goes_on(corpus, tmp_path):
    output = tmp_path / "out"
    run = tokenize(corpus, output, "--num-proc", 2)
    workers = wait_until(lambda: (found := children(run.pid))[1:] and found)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does; the workers are still loading what they need
    told = finish(run, 130)
    assert "goes on from here" in told and "Traceback" not in told
    wait_until(lambda: not any(map(alive, workers)), 10)
    assert count(output) < SHARDS
    assert_goes_on(corpus, output)


# Ranks and machines


def test_torchrun_ranks_share_a_corpus(corpus, tmp_path):
    folder, arguments = corpus
    torchrun = os.path.join(os.path.dirname(COMMAND), "torchrun")
    ranks = [torchrun, "--standalone", "--nproc_per_node", "2", "--no-python", COMMAND]
    command = [*ranks, "tokenize", folder / "in", tmp_path / "out", *arguments]
    done = subprocess.run(list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"8 shards made" in done.stdout
    assert_undisturbed(corpus, tmp_path / "out")


def test_machines_that_come_one_after_the_other_join_what_they_made(corpus, tmp_path):
    folder, arguments = corpus
    output = tmp_path / "out"

    def machine(index):
        torch.set_num_threads(1)
        parts = ["--num-shards", 2, "--shard-index", index, "--json", "-q"]
        result = CliRunner().invoke(app, list(map(str, ["tokenize", folder / "in", output, *arguments, *parts])))
        return json.loads(result.output)

    first = machine(1)
    assert (first["made_now"], first["left"]) == (8, 8)
    assert not (output / "totals.json").exists()
    killed = output / ".unfinished" / "data" / "of-a-killed-run.parquet"
    killed.parent.mkdir(parents=True, exist_ok=True)
    killed.write_bytes(b"PAR1")
    assert machine(0)["totals"]["examples"] == CLIPS
    assert_undisturbed(corpus, output)


# Ray


@pytest.fixture
def ray_folder():
    """A place whose path is short, as Ray's sockets need; whatever Ray left running there is ended."""
    pytest.importorskip("ray", reason="needs Ray: pip install ray")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if folder.encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                continue


def ray_actors(folder: Path) -> list[int]:
    """The processes of our actors in a Ray session that lies in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_actor = (process / "cmdline").read_bytes().startswith(b"ray::_RayWorker")
            if is_actor and str(folder).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@needs_proc
def test_ray_gives_the_same_though_an_actor_and_the_run_are_killed(corpus, tmp_path, ray_folder):
    output = tmp_path / "out"
    environment = {"RAY_TMPDIR": str(ray_folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with Watcher(output):
        run = tokenize(corpus, output, "--engine", "ray", **environment)
        wait_until(lambda: count(output) >= 1)
        kill_group(run)
        wait_until(lambda: not ray_actors(ray_folder), 30)
        assert count(output) < SHARDS
        # An actor is killed; its successor goes on up to the broken recording of the last shard.
        run = tokenize(corpus, output, "--engine", "ray", "--strict", **environment)
        before = count(output)
        wait_until(lambda: count(output) > before or run.poll() is not None)
        os.kill(wait_until(lambda: ray_actors(ray_folder))[0], signal.SIGKILL)
        told = finish(run, 1)
    assert "broken.wav" in told and "Traceback" not in told
    assert count(output) == SHARDS - 1
    assert_goes_on(corpus, output)


def test_ray_that_is_absent_is_explained(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    job = make_job(corpus[0] / "in", tmp_path / "out", corpus[0] / "model")
    with pytest.raises(ImportError, match=r"pip install 'mimi_hf\[ray\]'"):
        run_ray(job, [0])
