"""A corpus of codes back to audio."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from support.corpora import contents, make_job, rows_of, save_model, write_clips
from support.tiny import make_model

from mimi_hf.corpus.jobs import detokenize
from mimi_hf.corpus.jobs.detokenize import DetokenizeJob
from mimi_hf.corpus.jobs.file_names import file_name
from mimi_hf.corpus.jobs.storage import Output
from mimi_hf.corpus.jobs.tokenize import ExampleError
from mimi_hf.corpus.runners.local import run_here
from mimi_hf.corpus.sources.codes import open_codes
from mimi_hf.loading import ModelChoice


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model():
    return make_model(upsampling_ratios=[8, 6, 5, 4])


@pytest.fixture(scope="module")
def codes(tmp_path_factory, checkpoint):
    """What `mimi-hf tokenize` makes of a dozen recordings, one of which is broken."""
    folder = tmp_path_factory.mktemp("codes")
    write_clips(folder / "in" / "a b", 12)
    (folder / "in" / "broken.wav").write_text("no audio")
    everything(make_job(folder / "in", folder / "out", checkpoint, 5))
    return folder / "out"


def everything(job):
    job.begin()
    run_here(job, job.unfinished(), "cpu")
    return job.finish()


def make_back(codes, output, model, shard_size=5, **options):
    choice = ModelChoice(str(model))
    return DetokenizeJob(open_codes(str(codes)), Output(str(output)), choice, shard_size=shard_size, **options)


def decode_alone(model, row, num_quantizers=None):
    """The audio of a row as the model decodes it alone."""
    codes = torch.tensor(np.array(row["audio_codes"])[None, :num_quantizers].astype(np.int64))
    with torch.no_grad():
        audio = model.decode(codes).audio_values[0, 0].clamp(-1, 1).numpy()
    return audio[: row["audio_num_samples"]]


@pytest.mark.parametrize("num_quantizers", [None, 2])
@pytest.mark.parametrize("long", [False, True])
def test_audio_is_what_the_model_decodes(codes, checkpoint, model, tmp_path, monkeypatch, num_quantizers, long):
    if long:
        monkeypatch.setattr(detokenize, "LONG", 0.4)
        monkeypatch.setattr(detokenize, "_LONG_PUSH", 3)
    totals = everything(
        make_back(codes, tmp_path / "out", checkpoint, kind="wav", num_quantizers=num_quantizers, batch_seconds=3.0)
    )
    rows = rows_of(codes)
    assert totals["examples"] == len(rows) == 12
    assert {str(path.relative_to(tmp_path / "out" / "audio")) for path in tmp_path.rglob("*.wav.wav")} == {
        f"{name}.wav" for name in rows
    }
    for name, row in rows.items():
        audio, rate = soundfile.read(tmp_path / "out" / "audio" / f"{name}.wav")
        assert rate == 24_000
        np.testing.assert_allclose(audio, decode_alone(model, row, num_quantizers), atol=2 / 2**15)


def test_parquet_shards_open_as_audio_and_keep_columns(codes, checkpoint, model, tmp_path):
    everything(make_back(codes, tmp_path / "out", checkpoint, as_parquet=True))
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert isinstance(loaded.features["audio"], datasets.Audio)
    loaded = loaded.cast_column("audio", datasets.Audio(decode=False))
    rows = rows_of(codes)
    assert set(loaded["id"]) == set(rows)
    for row in loaded:
        (tmp_path / "one.flac").write_bytes(row["audio"]["bytes"])
        audio, _ = soundfile.read(tmp_path / "one.flac")
        np.testing.assert_allclose(audio, decode_alone(model, rows[row["id"]]), atol=2 / 2**15)
        assert row["audio_num_samples"] == len(audio)


def test_a_run_that_goes_on_gives_what_one_run_gives(codes, checkpoint, tmp_path):
    everything(make_back(codes, tmp_path / "whole", checkpoint))
    job = make_back(codes, tmp_path / "parts", checkpoint)
    job.begin()
    run_here(job, [2], "cpu")
    job = make_back(codes, tmp_path / "parts", checkpoint)
    assert job.unfinished() == [0, 1]
    everything(job)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_other_codebooks_and_other_settings_are_refused(codes, checkpoint, tmp_path):
    other = make_model(upsampling_ratios=[8, 6, 5, 4])
    other.quantizer.acoustic_residual_vector_quantizer.layers[0].codebook.embed_sum += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="made with other codebooks"):
        make_back(codes, tmp_path / "out", tmp_path / "other")
    assert everything(make_back(codes, tmp_path / "any", tmp_path / "other", any_model=True))["examples"] == 12
    everything(make_back(codes, tmp_path / "out", checkpoint))
    tuned = make_model(upsampling_ratios=[8, 6, 5, 4])
    next(iter(tuned.decoder.parameters())).data.mul_(1.1)
    tuned.save_pretrained(tmp_path / "tuned")
    for change, told in (
        ({"kind": "wav"}, "kind"),
        ({"num_quantizers": 2}, "num_quantizers"),
        ({"as_parquet": True}, "as_parquet"),
        ({"model": tmp_path / "tuned"}, "decoder_digest"),  # its codebooks are the same
    ):
        with pytest.raises(ValueError, match=told):
            make_back(codes, tmp_path / "out", change.pop("model", checkpoint), **change).begin()
    with pytest.raises(ValueError, match="begun with another source"):
        make_back(codes, codes, checkpoint).begin()
    for change in ({"num_quantizers": 7}, {"kind": "mp3"}, {"batch_seconds": -1}, {"shard_size": 0}):
        with pytest.raises(ValueError, match=r"must be|num_quantizers=7"):
            make_back(codes, tmp_path / "new", checkpoint, **change)
    assert not (tmp_path / "new").exists()


def test_hostile_rows_become_files_inside_of_the_folder_or_failures(checkpoint, tmp_path):
    good = [[1, 2, 3], [4, 5, 6]]
    ids = ["../../escape", "/etc/passwd", "a", "a.flac/b", "x" * 5000, "/".join(["deep"] * 900), "", ".", "..", "é\n日"]
    ids += ["a\0b", "con:", "." * 300, "\u202e"]
    bad = {"high": [[999, 1], [1, 2]], "ragged": [[1], [2, 3]], "none": None, "no frames": [[], []], "empty": []}
    bad |= {"no code": [[1, None], [2, 3]], "no codebook": [None, [1, 2]]}
    (tmp_path / "codes" / "data").mkdir(parents=True)
    rows = [{"id": name, "audio_codes": good} for name in ids]
    rows += [{"id": name, "audio_codes": value} for name, value in bad.items()]
    kind = pa.schema([("id", pa.string()), ("audio_codes", pa.list_(pa.list_(pa.int32())))])
    pq.write_table(pa.Table.from_pylist(rows, kind), tmp_path / "codes" / "data" / "0.parquet")
    ours = {"task": "tokenize", "codebook_digest": ModelChoice(str(checkpoint)).load("cpu").codebook_digest}
    (tmp_path / "codes" / "manifest.json").write_text(json.dumps(ours))
    totals = everything(make_back(tmp_path / "codes", tmp_path / "deep" / "er" / "out", checkpoint))
    failures = pq.read_table(tmp_path / "deep" / "er" / "out" / "failures.parquet").to_pylist()
    assert {row["id"] for row in failures} == set(bad)
    assert totals["examples"] == len(ids)
    audio = tmp_path / "deep" / "er" / "out" / "audio"
    assert len([path for path in audio.rglob("*") if path.is_file()]) == len(ids)
    assert len(list(tmp_path.rglob("*.flac"))) == len(ids)  # none is elsewhere, and none is a folder
    strict = make_back(tmp_path / "codes", tmp_path / "strict", checkpoint, strict=True)
    with pytest.raises(ExampleError, match="high"):
        everything(strict)


def test_names_of_files_differ_and_stay_inside():
    names = [
        "a",
        "A",
        "a%",
        "a%25",
        "..",
        ".",
        "%2E",
        "%2E%2E",
        "",
        "%",
        "/",
        "//",
        "a/",
        "a.flac",
        "a.flac/b",
        "x" * 300,
    ]
    names += ["x" * 301, "a/" * 400, "a/" * 401]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    for file in files:
        assert not {"", ".", ".."} & set(file.split("/")) and len(file.encode()) < 700
        assert max(len(part.encode()) for part in file.split("/")) < 240


def test_codes_of_others_decode_too_and_what_is_none_is_refused(checkpoint, model, tmp_path):
    codes = np.random.default_rng(0).integers(0, 64, (3, 5))
    table = pa.table({"id": ["mine"], "units": [codes.tolist()], "text": ["hello"]})
    pq.write_table(table, tmp_path / "0.parquet")
    with pytest.raises(ValueError, match="no column 'audio_codes'"):
        open_codes(str(tmp_path))
    with pytest.raises(ValueError, match="is of type string, but codes are lists"):
        open_codes(str(tmp_path), "text")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_codes(str(tmp_path / "absent"))
    source = open_codes(str(tmp_path), "units")
    job = DetokenizeJob(source, Output(str(tmp_path / "out")), ModelChoice(str(checkpoint)), "wav", as_parquet=True)
    everything(job)
    (row,) = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert (row["id"], row["source_id"], row["text"]) == ("0.parquet:0", "mine", "hello")
    (tmp_path / "one.wav").write_bytes(row["audio"]["bytes"])
    expected = decode_alone(model, {"audio_codes": codes, "audio_num_samples": None})
    np.testing.assert_allclose(soundfile.read(tmp_path / "one.wav")[0], expected, atol=2 / 2**15)
