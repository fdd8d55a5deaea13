"""Data sets in the form of the Hub."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import assert_complete, audio_table, fill, make_tar, read_all, wav

from mimi_hf.corpus.sources import open_source, resolve_audio
from mimi_hf.corpus.sources.base import as_audio
from mimi_hf.corpus.sources.hub import as_own_audio


@pytest.fixture
def data_set(tmp_path):
    """A folder as it would lie on the Hub, with two splits of several files."""
    features = {"audio": {"_type": "Audio"}, "text": {"_type": "Value", "dtype": "string"}}
    features["label"] = {"_type": "ClassLabel", "names": ["no", "yes"]}
    features["id"] = {"_type": "Value", "dtype": "int64"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "data").mkdir()
    for split, index in (("train", 0), ("train", 1), ("train", 2), ("test", 0)):
        table = audio_table(4, first=10 * index).append_column("label", pa.array([0, 1, -1, None]))
        table = table.select(list(features)).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / f"data/{split}-{index:05}.parquet", row_group_size=2)
    splits = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n")
    return tmp_path


def test_hub(data_set):
    source = open_source(data_set, kind="hub", split="train")
    examples = assert_complete(source, 12, sizes=(1, 1000))
    assert source.schema() == pa.schema([("text", pa.string()), ("label", pa.string()), ("source_id", pa.int64())])
    assert examples[5].id == "train/1:1"
    assert examples[5].audio == wav(11)
    assert [example.columns["label"] for example in examples[:4]] == ["no", "yes", None, None]
    assert len(source.shards(1)) == 3
    everything = open_source(data_set, kind="hub", split="all", columns=["split"])
    splits = [example.columns["split"] for example in assert_complete(everything, 16, sizes=(1,))]
    assert splits == ["test"] * 4 + ["train"] * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a split.*train, test"),
        ({"split": "dev"}, "no split 'dev'.*train, test"),
        ({"split": "test", "config": "french"}, "french"),
        ({"split": "test", "audio_column": "sound"}, "no column 'sound'"),
        ({"split": "test", "columns": ["words"]}, "no column 'words'"),
    ],
)
def test_hub_mistakes_are_explained(data_set, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(data_set, kind="hub", **options)


def test_hub_reads_folders_of_audio_without_torchcodec(tmp_path):
    fill(tmp_path, ["train/a.wav", "train/b c.wav"])
    (tmp_path / "train/metadata.csv").write_text("file_name,text\na.wav,x\nb c.wav,y\n")
    examples = assert_complete(open_source(tmp_path, kind="hub"), 2, sizes=(1,))
    assert [example.columns["text"] for example in examples] == ["x", "y"]
    assert resolve_audio(examples[1]) == str(tmp_path / "train/b c.wav")


def test_hub_damage_ends_one_file(data_set):
    source = open_source(data_set, kind="hub", split="train")
    damaged = data_set / "data/train-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    examples = read_all(source, 9)
    assert [example.id for example in examples if example.error] == ["train/1:rest"]
    assert len(examples) == 9


def test_hub_rows_may_name_only_files_of_their_own(tmp_path, memory):
    names = ["a.wav", "/etc/hostname", "../a.wav", "b/../../a.wav", "https://other.place/a.wav", f"file://{tmp_path}/a"]
    pq.write_table(pa.table({"audio": [{"bytes": None, "path": name} for name in names]}), tmp_path / "train.parquet")
    good, *bad = read_all(open_source(tmp_path, kind="hub"), 9)
    assert resolve_audio(good) == f"{os.path.realpath(tmp_path)}/a.wav"
    assert all("may only name files in it" in example.error for example in bad)
    root = "hf://datasets/user/name@" + "1" * 40
    assert as_own_audio("x/a.wav", root) == as_own_audio(f"{root}/x/a.wav", root) == f"{root}/x/a.wav"
    for name in (*names[1:], f"{root}/../other/a.wav", f"{root}0/a.wav", "hf://datasets/user/other/a.wav"):
        with pytest.raises(ValueError, match=r"may only name|must not name"):
            as_own_audio(name, root)
    for name in ("/etc/hostname", "file:///etc/hostname"):  # from parquet files and manifests on the Hub, too
        with pytest.raises(ValueError, match="must not name"):
            as_audio(name, "hf://datasets/user/name/data")


def test_hub_files_whose_types_differ_cost_only_their_rows(tmp_path):
    for i, numbers in enumerate([[1, 2], ["many", None]]):  # tars, of which `datasets` checks no types
        content = [
            (f"{n}.{end}", wav() if end == "wav" else json.dumps({"n": n}).encode())
            for n in numbers
            for end in ("wav", "json")
        ]
        (tmp_path / f"train-{i}.tar").write_bytes(make_tar(content))
    source = open_source(tmp_path, kind="hub", columns=["json"])
    examples = assert_complete(source, 4, sizes=(1,))
    assert "{'n': 'many'} is not of the type struct<n: int64>" in examples[2].error
    assert [examples[i].columns["json"] for i in (0, 1, 3)] == [{"n": 1}, {"n": 2}, {"n": None}]
