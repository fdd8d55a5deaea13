"""What goes wrong around a corpus, and passes: networks, models that change, actors that find no room."""

from collections import deque

import numpy as np
import pytest
from support.corpora import make_job, rows_of, save_model, write_clips

from mimi_hf.corpus.jobs.detokenize import DetokenizeJob
from mimi_hf.corpus.jobs.encoding import Encoded
from mimi_hf.corpus.jobs.storage import Output
from mimi_hf.corpus.reading import Recording, gather
from mimi_hf.corpus.runners import shard
from mimi_hf.corpus.runners.local import run_here
from mimi_hf.corpus.runners.ranks import my_part
from mimi_hf.corpus.runners.ray import feed_actors
from mimi_hf.corpus.sources import Example
from mimi_hf.corpus.sources.codes import open_codes
from mimi_hf.loading import ModelChoice


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"), 6)


class Failing:
    """A source whose network fails a number of times."""

    def __init__(self, source, times):
        self.source, self.times = source, times

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read(self, shard):
        for number, example in enumerate(self.source.read(shard)):
            if number == 2 and self.times:
                self.times -= 1
                raise ConnectionResetError(104, "connection reset")
            yield example


@pytest.mark.parametrize("times", [2, 3])
def test_a_shard_is_tried_again_where_a_network_failed(clips, checkpoint, tmp_path, monkeypatch, times):
    pauses = []
    monkeypatch.setattr(shard.time, "sleep", pauses.append)
    job = make_job(clips, tmp_path / "out", checkpoint)
    job.source = Failing(job.source, times)
    job.begin()
    seconds = []
    if times > 2:
        with pytest.raises(ConnectionResetError):
            run_here(job, job.unfinished())
        assert not list(tmp_path.glob("out/data/*"))
        return
    run_here(job, job.unfinished(), watch=lambda heard, done: seconds.append(heard))
    assert pauses == [1.0, 15.0]
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 6
    heard = sum(row["audio_num_samples"] for row in rows.values()) / 24_000
    assert seconds[-1] == pytest.approx(heard)  # what was done in vain does not count


def test_pools_end_with_a_long_recording_whose_file_may_be_large():
    short = Recording(Example("short", "a.wav"), np.zeros((1, 10), np.float32))
    long, bad = Recording(Example("long", b"much")), Recording(Example("bad", "b.wav"), reason="no audio")
    assert [len(pool) for pool in gather([short, bad, long, long, short], 100)] == [3, 1, 1]


def test_what_is_encoded_lets_go_of_the_file():
    encoded = Encoded(Example("one", b"the content of a file", {"text": "hello"}))
    assert encoded.example == Example("one", None, {"text": "hello"})


def test_a_model_that_changes_during_a_run_is_refused(clips, tmp_path):
    checkpoint = save_model(tmp_path / "model")
    job = make_job(clips, tmp_path / "out", checkpoint)
    job.begin()
    save_model(tmp_path / "model", sliding_window=9, num_hidden_layers=1)
    with pytest.raises(ValueError, match="was changed since the run began"):
        run_here(job, job.unfinished())


def test_the_codebooks_are_checked_for_files_of_a_corpus_too(clips, checkpoint, tmp_path):
    job = make_job(clips, tmp_path / "out", checkpoint)
    job.begin()
    run_here(job, job.unfinished())
    other = save_model(tmp_path / "other", codebook_size=32)
    for place in ("", "/data", "/data/*.parquet"):
        source = open_codes(f"{tmp_path}/out{place}")
        assert {example.id for shard in source.shards(100) for example in source.read(shard)} == set(
            rows_of(tmp_path / "out")
        )
        with pytest.raises(ValueError, match="other codebooks"):
            DetokenizeJob(source, Output(str(tmp_path / "audio")), ModelChoice(str(other)))


@pytest.mark.parametrize("content", ["[1]", "{}", "no JSON"])
def test_a_manifest_of_somebody_else_means_nothing(clips, checkpoint, tmp_path, content):
    job = make_job(clips, tmp_path / "out", checkpoint)
    job.begin()
    run_here(job, job.unfinished())
    (tmp_path / "out" / "manifest.json").write_text(content)
    assert open_codes(str(tmp_path / "out")).codebook_digest is None


def test_an_array_of_slurm_with_gaps_is_refused():
    environment = {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "5"}
    with pytest.raises(ValueError, match=r"do not follow each other.*--num-shards"):
        my_part(None, None, environment)


class Actor:
    """What `_feed_actors` needs of a Ray actor: one that is up, or never will be."""

    def __init__(self, up):
        self.up, self.did = up, []
        self.ready = self.run = self

    def remote(self, index=None):
        task = (self, index, object())
        if index is not None:
            self.did.append(index)
        return task


class Cluster:
    """`ray.wait` and `ray.get` on the tasks of [`Actor`]s."""

    def wait(self, tasks, timeout):
        return [task for task in tasks if task[0].up][:1], []

    def get(self, task):
        return 2.0


def test_actors_that_find_no_room_get_no_shards():
    pool, watched = [Actor(True), Actor(False), Actor(True)], []
    feed_actors(Cluster(), pool, deque(range(9)), lambda *told: watched.append(told))
    assert sorted(pool[0].did + pool[2].did) == list(range(9))
    assert pool[1].did == []
    assert watched[-1] == (18.0, 9)
