"""What goes wrong behind URLs, and whether it is damage."""

import asyncio
import io
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.sources import audio_table, make_tar, members, wav

from mimi_hf.corpus.sources import Example, open_source, resolve_audio
from mimi_hf.corpus.sources.base import is_damage
from mimi_hf.corpus.sources.hub import is_damage_behind_url
from mimi_hf.corpus.sources.locations import open_binary
from mimi_hf.utils.remote import is_absent


@pytest.fixture
def answering():
    """The address of a server that answers any request with the status that its path names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path.strip("/").partition(".")[0]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815
        log_message = lambda *_: None  # noqa: E731

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "absent"), [("404", True), ("410", True), ("401", False), ("403", False), ("500", False), ("503", False)]
)
@pytest.mark.parametrize("read", [open_binary, lambda url: resolve_audio(Example("x", url))])
def test_only_proven_absence_is_damage(answering, status, absent, read):
    url = f"{answering}/{status}.wav"
    with pytest.raises(OSError, match=url) as raised:
        read(url)
    assert isinstance(raised.value, FileNotFoundError) is is_damage(raised.value) is absent


@pytest.mark.parametrize("read", [open_binary, lambda url: resolve_audio(Example("x", url))])
def test_a_network_that_is_down_is_no_damage(read):
    with pytest.raises(OSError, match="cannot be read") as raised:
        read("http://127.0.0.1:9/refused.wav")
    assert not is_damage(raised.value)


class Wavering(MemoryFileSystem):
    """Files that can be read until something happens."""

    protocol = "wavering"
    cachable = False
    failure: Exception | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("wavering://", "memory://", 1))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        return File(file.getvalue())

    def cat_file(self, path, **options):
        return self._open(path).read()


class File(io.BytesIO):
    def read(self, size=-1):
        if Wavering.failure:
            raise Wavering.failure
        return super().read(size)


class ForeignError(Exception):
    pass


@pytest.mark.parametrize(
    "failure",
    [PermissionError("The token has expired."), ForeignError("reset"), asyncio.TimeoutError(), OSError("no number")],
    ids=lambda failure: type(failure).__name__,
)
def test_what_fails_behind_a_url_fails_no_example(memory, monkeypatch, failure):
    fsspec.register_implementation("wavering", Wavering, clobber=True)
    table = io.BytesIO()
    pq.write_table(audio_table(100), table, row_group_size=10)
    memory.pipe({"/p/a.parquet": table.getvalue(), "/w/a.tar": make_tar(members("abc"))})
    memory.pipe({"/m/list.csv": b"audio\n" + b"a.wav\n" * 9, "/f/a.wav": wav()})
    for folder in "pwmf":
        source = open_source(f"wavering://{folder}")
        (shard,) = source.shards(1000)
        assert all(resolve_audio(example) for example in source.read(shard) if folder != "m")
        source = pickle.loads(pickle.dumps(source))
        with monkeypatch.context() as patched, pytest.raises(OSError, match="cannot be read") as raised:
            patched.setattr(Wavering, "failure", failure)
            for example in source.read(shard):
                resolve_audio(example)
        assert not is_damage(raised.value), folder
    examples = open_source("wavering://p").read({"parts": [["a.parquet", 0, 100]]})
    assert next(examples).audio == wav()  # and then it fails, between the pages of a file
    with monkeypatch.context() as patched, pytest.raises(OSError, match="cannot be read"):
        patched.setattr(Wavering, "failure", failure)
        list(examples)


def chained(cause, **attributes):
    """A FileNotFoundError whose cause has these attributes."""
    for name, value in attributes.items():
        setattr(cause, name, value)
    error = FileNotFoundError("x")
    error.__cause__ = cause
    return error


def test_absence_as_clients_tell_of_it():
    aws = {"Error": {"Code": "NoSuchKey"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
    response = type("Response", (), {"status_code": 404})()
    refused = type("Response", (), {"status_code": 401})()
    absent = [
        FileNotFoundError("x"),
        chained(KeyError("x")),
        chained(FileNotFoundError("x")),
        chained(ValueError("//")),
    ]
    absent += [chained(ForeignError(), status=404), chained(ForeignError(), response=aws)]
    absent += [chained(ForeignError(), response=response)]
    unknown = [chained(ForeignError()), chained(ForeignError(), status=503), chained(ForeignError(), response=refused)]
    unknown += [PermissionError("x"), chained(ConnectionError()), chained(chained(TimeoutError())), KeyError("x")]
    assert all(map(is_absent, absent))
    assert not any(map(is_absent, unknown))
    assert all(map(is_damage_behind_url, [*absent, pa.ArrowInvalid("x"), OSError("of pyarrow")]))
    assert not any(map(is_damage_behind_url, unknown))
