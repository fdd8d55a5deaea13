"""AudioTokenizer in several processes, and in the cache of datasets."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import datasets
import multiprocess
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from support.hub_cache import fill_cache
from support.tiny import make_model
from support.tokenized import assert_tokenized, encode_all, make_dataset, make_wav

from mimi_hf import AudioDetokenizer, AudioTokenizer
from mimi_hf.corpus.datasets_map import model_source


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


# The cache of datasets


def test_the_hash_tells_what_is_done_and_nothing_else(checkpoint, tmp_path):
    def hash_of(model=checkpoint, kind=AudioTokenizer, **arguments):
        return Hasher.hash(kind(model, **arguments))

    same = hash_of()
    assert hash_of(device="cpu", batch_seconds=3.0, num_quantizers=6, dtype=torch.float32) == same
    used = AudioTokenizer(checkpoint)
    used({"audio": [make_wav(100)]})
    assert Hasher.hash(used) == Hasher.hash(pickle.loads(pickle.dumps(used))) == same
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert hash_of(tmp_path / "copy") == same
    different = [
        hash_of(num_quantizers=5),
        hash_of(dtype="bfloat16"),
        hash_of(audio_column="sound"),
        hash_of(on_error="skip"),
        hash_of(sampling_rate=16_000),
        hash_of(kind=AudioDetokenizer),
        hash_of(kind=AudioDetokenizer, audio_format="wav"),
    ]
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    different.append(hash_of(tmp_path / "copy"))
    assert len({same, *different}) == 1 + len(different)


def test_a_model_itself_is_hashed_by_its_weights(checkpoint):
    model = make_model()
    tokenizer = AudioTokenizer(model)
    before = Hasher.hash(tokenizer)
    assert Hasher.hash(AudioTokenizer(make_model())) == before
    assert Hasher.hash(pickle.loads(pickle.dumps(tokenizer))) == before
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert Hasher.hash(tokenizer) != before


def test_hashes_in_another_process_and_by_commits_of_the_hub(checkpoint, tmp_path):
    fill_cache(tmp_path)
    code = f"""
import json, pathlib, shutil, mimi_hf
from datasets.fingerprint import Hasher
repository = pathlib.Path({str(tmp_path / "hub" / "models--kyutai--mimi")!r})
first = mimi_hf.AudioTokenizer("kyutai/mimi", num_quantizers=4)
shutil.copytree(repository / "snapshots" / ("4" * 40), repository / "snapshots" / ("5" * 40))
(repository / "refs" / "main").write_text("5" * 40)
second = mimi_hf.AudioTokenizer("kyutai/mimi", num_quantizers=4)
pinned = mimi_hf.AudioTokenizer("kyutai/mimi", revision="4" * 40, num_quantizers=4)
first.source.run(lambda model: None)
folder = mimi_hf.AudioTokenizer({str(checkpoint)!r})
print(json.dumps([first.source.identity, *map(Hasher.hash, (first, second, pinned, folder))]))
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "7"},
    )
    assert process.returncode == 0, process.stderr
    identity, first, second, pinned, folder = json.loads(process.stdout)
    assert identity == f"kyutai/mimi {'4' * 40} float32"
    assert pinned == first != second
    assert folder == Hasher.hash(AudioTokenizer(checkpoint))


def test_the_second_map_is_found_in_the_cache(checkpoint, tmp_path):
    make_dataset().to_parquet(tmp_path / "data.parquet")
    dataset = datasets.Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path / "cache"))
    first = dataset.map(AudioTokenizer(checkpoint, num_quantizers=2), batched=True)
    again = dataset.map(AudioTokenizer(checkpoint, num_quantizers=2, batch_seconds=1.0), batched=True)
    other = dataset.map(AudioTokenizer(checkpoint, num_quantizers=3), batched=True)
    assert again.cache_files == first.cache_files
    assert other.cache_files != first.cache_files


def test_a_folder_that_changes_is_noticed(tmp_path):
    make_model().save_pretrained(tmp_path)
    tokenizer = AudioTokenizer(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match="was changed after"):
        tokenizer({"audio": [make_wav(100)]})


# Processes


def test_pickles_hold_no_weights(checkpoint):
    tokenizer = AudioTokenizer(checkpoint, num_quantizers=3)
    tokenizer({"audio": [make_wav(100)]})
    assert len(pickle.dumps(tokenizer)) < 5000


def test_the_model_is_loaded_once_per_process(checkpoint, monkeypatch):
    loads = []
    load = model_source.MimiModel.from_pretrained
    monkeypatch.setattr(model_source.MimiModel, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k))
    model_source._load.cache_clear()
    tokenizer = AudioTokenizer(checkpoint, num_quantizers=3)
    for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), AudioTokenizer(checkpoint)):
        codes = copy({"audio": [make_wav(100)]})
        copy({"audio": make_wav(50)})
    AudioDetokenizer(checkpoint)(codes)
    assert len(loads) == 1


@pytest.mark.parametrize("by", ["name", "model"])
def test_processes_agree_with_one(checkpoint, model, by):
    tokenizer = AudioTokenizer(checkpoint if by == "name" else model, num_quantizers=3)
    tokenized = make_dataset().map(tokenizer, batched=True, batch_size=2, num_proc=2, with_rank=True)
    assert_tokenized(tokenized, encode_all(model))


def test_a_fork_may_lose_busy_threads(checkpoint, model):
    tokenizer, expected = AudioTokenizer(checkpoint, num_quantizers=3), encode_all(model)
    torch.set_num_threads(4)  # 2 for each process
    torch.randn(600, 600) @ torch.randn(600, 600)  # GNU OpenMP would wait for the threads of this for ever
    with multiprocess.get_context("fork").Pool(2) as pool:
        batch = pool.apply_async(tokenizer, ({"audio": make_dataset()["audio"][:]},)).get(timeout=30)
    for found, codes in zip(batch["audio_codes"], expected, strict=True):
        np.testing.assert_array_equal(found, codes)


def test_each_process_takes_another_gpu(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    places = [AudioTokenizer(checkpoint).source.place(rank) for rank in (None, 0, 1, 2)]
    assert places == ["cuda", "cuda:0", "cuda:1", "cuda:0"]
    for device in ("cpu", "cuda:1"):
        assert AudioTokenizer(checkpoint, device=device).source.place(0) == device
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert AudioTokenizer(checkpoint, device="cpu").source.place(0) == "cpu"
    with pytest.raises(RuntimeError, match="set_start_method"):
        AudioTokenizer(checkpoint).source.place(0)


def report_threads(examples, tokenizer):
    threads = tokenizer.source.run(lambda model: torch.get_num_threads())
    return {"threads": [threads] * len(examples["n"]), "process": [os.getpid()] * len(examples["n"])}


def test_processes_share_the_threads(checkpoint):
    tokenizer = AudioTokenizer(checkpoint)
    torch.set_num_threads(6)
    arguments = {"batched": True, "fn_kwargs": {"tokenizer": tokenizer}}
    reports = make_dataset().map(report_threads, num_proc=3, **arguments)
    assert set(reports["threads"]) == {2}
    assert os.getpid() not in reports["process"]
    assert set(make_dataset().map(report_threads, **arguments)["threads"]) == {6}
