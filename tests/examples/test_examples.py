"""Every example runs, on mimi-tiny and seconds of audio."""

import importlib.util
import re
from pathlib import Path

import datasets
import pytest
import soundfile
import torch
from transformers import LlamaForCausalLM

from mimi_hf import MimiModel, mimi_tiny_path

EXAMPLES = Path(__file__).parents[2] / "examples"


def finish(process):
    """Waits for an example and gives its standard output and standard error."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    return out, err.decode()


def test_each_is_short_and_listed():
    listed = re.findall(r"^- `(\w+\.py)`", (EXAMPLES / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))
    for name in listed:
        assert len((EXAMPLES / name).read_text().splitlines()) < 120, name


@pytest.mark.parametrize(("output", "options"), [("heard.wav", []), ("-", ["--fast"])])
def test_live_call(start, recordings, tmp_path, output, options):
    listener = start("live_call.py", "listen", output, "--port", 0)
    lines = (re.search(r"listening at .*:(\d+)", line.decode()) for line in listener.stderr)
    port = next(found[1] for found in lines if found)
    out, _ = finish(start("live_call.py", "speak", recordings / "one.wav", "--port", port, *options))
    assert re.fullmatch(r"13 frames sent, [12]\.\d\d kbps, 1\.00 of it codes\n", out.decode())
    audio, err = finish(listener)
    frames, delay = re.search(r"(\d+) frames heard, delay (-?\d+) ms", err).groups()
    assert int(frames) == 13
    if output == "-":
        assert len(audio) == 2 * 13 * 1920
    else:
        assert soundfile.info(tmp_path / output).frames == 13 * 1920
        assert int(delay) >= 80  # a frame is sent when its last sample is there


def test_speech_lm(start, recordings, tmp_path):
    out, err = finish(start("speech_lm.py", recordings, "made.wav", "--steps", 3, "--seconds", 0.8))
    assert "2 recordings, 3 sequences of up to 10 frames" in out.decode()
    assert "'loss'" in out.decode() + err
    frames = int(re.search(r"(\d+) frames generated: made.wav", out.decode())[1])
    assert 1 <= frames <= 10
    assert soundfile.info(tmp_path / "made.wav").frames == 1920 * frames
    lm = LlamaForCausalLM.from_pretrained(tmp_path / "speech-lm")
    assert lm.config.vocab_size == 4 * 1024 + 3


def test_the_ids_of_speech_lm():
    spec = importlib.util.spec_from_file_location("speech_lm", EXAMPLES / "speech_lm.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    ids = example.Ids(num_quantizers=2, codebook_size=8)
    long, short = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7], [0]])
    batch = ids.collate([{"audio_codes": long}, {"audio_codes": short}])
    assert batch["input_ids"].tolist() == [[16, 1, 12, 2, 13, 3, 14, 17], [16, 7, 8, 17, 18, 18, 18, 18]]
    assert batch["attention_mask"].tolist() == [[1] * 8, [1] * 4 + [0] * 4]
    assert batch["labels"].tolist() == [batch["input_ids"][0].tolist(), [16, 7, 8, 17] + [-100] * 4]
    for row, codes in zip(batch["input_ids"], (long, short), strict=True):
        assert torch.equal(ids.to_codes(row), codes)
    assert torch.equal(ids.to_codes(batch["input_ids"][0, :-2]), long[:, :2])  # the last frame is cut in two

    only = example.OneCodebook(ids)
    for length, allowed in ((1, [*range(8), 17]), (2, [*range(8, 16)]), (3, [*range(8), 17])):
        scores = only(batch["input_ids"][:, :length], torch.zeros(2, 19))
        assert torch.equal(scores[0], scores[1])
        assert scores[0].isfinite().nonzero().flatten().tolist() == allowed


def test_map_dataset(start, recordings, tmp_path):
    out, _ = finish(start("map_dataset.py", recordings, "codes", "--num-quantizers", 3))
    assert "2 recordings, 20 frames of 3 codes: codes" in out.decode()
    codes = datasets.load_from_disk(tmp_path / "codes")
    assert codes.column_names == ["name", "audio_codes", "audio_num_samples"]
    assert [(len(row["audio_codes"]), len(row["audio_codes"][0])) for row in codes] == [(3, 13), (3, 7)]
    assert soundfile.info(tmp_path / "codes-first.flac").frames == codes[0]["audio_num_samples"] == 24_000


def test_fine_tune(start, recordings, tmp_path):
    out, _ = finish(start("fine_tune.py", recordings, "run", "--steps", 3, "--batch-size", 2))
    assert len(re.findall(r"^step \d: mel loss", out.decode(), flags=re.MULTILINE)) == 3
    before, after = re.search(r"^loss: (\S+) before, (\S+) after$", out.decode(), flags=re.MULTILINE).groups()
    assert float(before) != float(after)
    tuned, old = (MimiModel.from_pretrained(folder) for folder in (tmp_path / "run" / "best", mimi_tiny_path()))
    assert tuned.codebook_digest == old.codebook_digest
