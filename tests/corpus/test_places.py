"""Corpora in places that fsspec reaches: memory, S3, and file systems that show a file while it is written."""

import socket

import fsspec
import pytest
import soundfile
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from support.corpora import make_job, save_model, write_clips

from mimi_hf.corpus.jobs.detokenize import DetokenizeJob
from mimi_hf.corpus.jobs.storage import Output
from mimi_hf.corpus.runners.local import run_here
from mimi_hf.corpus.sources.codes import open_codes
from mimi_hf.loading import ModelChoice


class Remote(DirFileSystem):
    """A file system like one behind sftp: what is being written can be seen, and nothing is renamed onto a file."""

    protocol = "remote"
    root = ""
    cachable = False

    def __init__(self, **_):
        super().__init__(path=self.root, fs=LocalFileSystem(auto_mkdir=False))

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("remote://").strip("/")

    def put_file(self, local, path, **options):
        Remote.puts.append(path)
        super().put_file(local, path, **options)

    def mv(self, old, new, **options):
        assert not self.exists(new), f"{new} is there already"
        super().mv(old, new, **options)

    puts: list[str] = []  # noqa: RUF012


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def remote(tmp_path, monkeypatch):
    fsspec.register_implementation("remote", Remote, clobber=True)
    (tmp_path / "remote").mkdir()
    monkeypatch.setattr(Remote, "root", str(tmp_path / "remote"))
    monkeypatch.setattr(Remote, "puts", [])
    return "remote://corpus"


@pytest.fixture
def memory():
    yield "memory://corpus"
    fsspec.filesystem("memory").rm("/corpus", recursive=True)


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("s3fs", reason="needs s3fs: pip install s3fs")
    server = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = server.ThreadedMotoServer("127.0.0.1", port)
    running.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/corpus"
    running.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("place", ["memory", "bucket", "remote"])
def test_there_and_back_again_in_any_place(place, request, checkpoint, tmp_path):
    root = request.getfixturevalue(place)
    clips = write_clips(tmp_path / "clips", 7)
    file_system, path = fsspec.core.url_to_fs(root)
    file_system.makedirs(f"{path}/in", exist_ok=True)
    for clip in clips.iterdir():
        file_system.put_file(str(clip), f"{path}/in/{clip.name}")

    def job():
        return make_job(f"{root}/in", f"{root}/out", checkpoint, 3)

    first = job()
    first.begin()
    run_here(first, first.unfinished()[:1], "cpu")  # and then it was killed
    assert first.finish() is None
    second = job()
    second.begin()
    assert second.unfinished() == [1, 2]
    run_here(second, second.unfinished(), "cpu")
    assert second.finish()["examples"] == 7
    second.output.remove_unfinished(alone=True)
    names = {"README.md", "data", "manifest.json", "shards", "totals.json"}
    assert Output(f"{root}/out").names() == names

    here = make_job(clips, tmp_path / "here", checkpoint, 3)
    here.begin()
    run_here(here, here.unfinished(), "cpu")
    for name in here.output.names("data"):
        assert second.output.read(f"data/{name}") == here.output.read(f"data/{name}")

    back = DetokenizeJob(open_codes(f"{root}/out"), Output(f"{root}/back"), ModelChoice(str(checkpoint)), shard_size=4)
    back.begin()
    run_here(back, back.unfinished(), "cpu")
    assert back.finish()["examples"] == 7
    with file_system.open(f"{path}/back/audio/003.wav.flac") as file:
        assert soundfile.info(file).frames == soundfile.info(clips / "003.wav").frames
    if place == "remote":
        assert all(".unfinished/" in name for name in Remote.puts if "/in/" not in name)


def test_a_path_may_hold_what_means_a_chain_elsewhere(tmp_path):
    output = Output(str(tmp_path / "a::b"))
    assert output.path("x") == str(tmp_path / "a::b" / "x") and output.is_local


def test_places_that_are_not_there_are_explained(checkpoint, tmp_path):
    clips = write_clips(tmp_path / "clips", 1)
    with pytest.raises(ValueError, match="Protocol not known: nowhere"):
        make_job(clips, "nowhere://out", checkpoint)


def test_a_file_that_fails_is_not_written(tmp_path, remote):
    for output in (Output(str(tmp_path / "out")), Output(remote)):
        output.write("a/name", b"old")
        with pytest.raises(RuntimeError), output.writing("a/name") as path:
            path.write_bytes(b"half")
            raise RuntimeError
        assert output.read("a/name") == b"old"
        output.write("a/name", b"new")
        assert output.read("a/name") == b"new"
        output.write_json("odd.json", {"name": "\udcff"})
        assert output.read_json("odd.json") == {"name": "\udcff"}
        output.remove_unfinished(alone=True)
        assert output.names() == {"a", "odd.json"}


def test_what_others_write_stays(tmp_path):
    output = Output(str(tmp_path))
    killed = tmp_path / ".unfinished" / "data" / "0.parquet"
    killed.parent.mkdir(parents=True)
    killed.touch()
    with output.writing("README.md") as card:
        output.remove_unfinished(alone=False)
        assert card.exists()  # of one who joins at this moment
        assert not killed.parent.exists()
    output.remove_unfinished(alone=False)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
