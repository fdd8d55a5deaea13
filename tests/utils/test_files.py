"""Files that appear whole or not at all, whatever they are called, and writing to what takes its time."""

import io
import os

import pytest

from mimi_hf.utils.files import as_seekable, read_available, read_exactly, write_all, written_beside


def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="a device or a pipe"), written_beside(tmp_path / "pipe") as aside:
        aside.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"] and (tmp_path / "pipe").is_fifo()


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("語" * 83 + ".flac")  # 254 bytes
    for text in ("old", "new"):
        with written_beside(path) as aside:
            aside.write_text(text)
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_file_replaces_no_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    with pytest.raises(IsADirectoryError, match="Name a file"), written_beside(tmp_path / "folder") as aside:
        aside.touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "thesis.tex"]
    with pytest.raises(FileNotFoundError, match="no folder"), written_beside(tmp_path / "a" / "b"):
        pass


class Slow(io.RawIOBase):
    """A raw file that takes three bytes at a time, and nothing in the end."""

    def __init__(self, room):
        self.room, self.taken = room, b""

    def write(self, data):
        part = bytes(data[: min(3, self.room - len(self.taken))])
        self.taken += part
        return len(part) or None


def test_all_is_written_or_it_is_told():
    file = Slow(100)
    write_all(file, b"0123456789")
    assert file.taken == b"0123456789"
    with pytest.raises(BlockingIOError):
        write_all(Slow(5), b"0123456789")


def test_reading_waits_for_the_first_byte_or_for_all():
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as source, open(write_end, "wb", buffering=0) as sink:
        assert as_seekable(source) is None
        sink.write(b"012")
        assert read_available(source, 100) == b"012"
        sink.write(b"3456")
        assert read_exactly(source, 2) == b"34"
        sink.close()
        assert read_exactly(source, 100) == b"56"
        assert read_available(source, 1) == b""


def test_what_gives_no_bytes_is_told():
    file = io.BytesIO(b"0")
    assert as_seekable(file) is file
    with pytest.raises(TypeError, match="gives str, not bytes"):
        read_exactly(io.StringIO("text"), 4)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    with open(read_end, "rb", buffering=0) as source, open(write_end, "wb"):
        for read in (read_available, read_exactly):
            with pytest.raises(BlockingIOError, match="blocking mode"):
                read(source, 4)


def test_objects_that_tell_nothing_take_everything():
    taken = []

    class Sink:
        def write(self, data):
            taken.append(bytes(data))

    write_all(Sink(), b"0123456789")
    assert taken == [b"0123456789"]
