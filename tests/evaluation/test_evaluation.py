"""Evaluation of a model: against the same done by hand."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from support.speech import RATE, noise
from support.tiny import make_model

from mimi_hf.audio import read_audio
from mimi_hf.corpus.sources import Example
from mimi_hf.evaluation.evaluate import evaluate
from mimi_hf.evaluation.examples import read_pieces
from mimi_hf.evaluation.metrics import Score, score
from mimi_hf.evaluation.report import CodebookUse


def test_evaluation_is_what_is_done_by_hand(codec, recordings):
    report = evaluate(codec.model, recordings, (1, 4), ["mel_distance", "si_sdr"], jobs=1)
    assert [file.id for file in report.files] == ["0.wav", "1.wav", "2.wav", "damaged.wav"]
    assert [level.num_quantizers for level in report.levels] == [1, 4]
    assert [level.bits_per_second for level in report.levels] == [1 * 6 * 12.5, 4 * 6 * 12.5]
    assert "cannot be read" in report.files[3].reason
    assert report.failures == [report.files[3]]
    counts, values = np.zeros((4, 64), np.int64), {1: [], 4: []}
    for number, file in enumerate(report.files[:3]):
        audio = read_audio(recordings / f"{number}.wav")[0]
        assert file.duration == pytest.approx(audio.shape[1] / RATE)
        codes = codec.model.encode(torch.from_numpy(audio)[None], num_quantizers=4).audio_codes
        for level in (1, 4):
            with torch.no_grad():
                decoded = codec.model.decode(codes[:, :level]).audio_values[0, 0, : audio.shape[1]].numpy()
            expected = score(audio[0], decoded, RATE, ["mel_distance", "si_sdr"])
            for name, one in expected.items():
                assert file.scores[level][name].value == pytest.approx(one.value, rel=1e-3)
            values[level].append(expected["mel_distance"].value)
        for row, code in zip(counts, codes[0].numpy(), strict=True):
            row += np.bincount(code, minlength=64)
    for level in report.levels:
        summary = level.metrics["mel_distance"]
        assert summary.mean == pytest.approx(np.mean(values[level.num_quantizers]), rel=1e-3)
        assert summary.median == pytest.approx(np.median(values[level.num_quantizers]), rel=1e-3)
        assert summary.count == 3
        assert level.decode_speed > 0
    assert report.codebooks == tuple(CodebookUse.of(row) for row in counts)
    assert report.frames == counts[0].sum()
    assert report.encode_speed > 0


def test_a_model_that_gives_back_what_it_got_is_at_the_top(codec, recordings, monkeypatch):
    # The decoder plays what the encoder heard: every metric must see each piece beside its own reconstruction.
    heard = []
    encode, decode = codec.model.encoder_stream, codec.model.decoder_stream

    def encoder_stream(*arguments, **options):
        stream = encode(*arguments, **options)
        push = stream.push
        stream.push = lambda chunk: heard.append(chunk) or push(chunk)
        return stream

    def decoder_stream():
        stream = decode()
        stream.push = lambda codes: torch.nn.functional.pad(heard[-1], (0, -heard[-1].shape[2] % 1920))
        return stream

    monkeypatch.setattr(codec.model, "encoder_stream", encoder_stream)
    monkeypatch.setattr(codec.model, "decoder_stream", decoder_stream)
    report = evaluate(codec.model, recordings, (2,), ["si_sdr", "mel_distance"], jobs=1)
    for file in report.files[:3]:
        assert file.scores[2] == {"si_sdr": Score(100.0), "mel_distance": Score(0.0)}


def test_long_recordings_go_on_from_piece_to_piece(codec, tmp_path):
    path = tmp_path / "long.wav"
    audio = 0.3 * noise(int(65.3 * RATE))
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    pieces = [piece[0] for piece in read_pieces(Example("long", str(path)), codec.model.config)]
    assert len(pieces) == 3
    assert np.array_equal(np.concatenate(pieces), audio)
    assert all(10 <= len(piece) / RATE <= 30 for piece in pieces)
    report = evaluate(codec.model, path, (2,), ["mel_distance"], jobs=1)
    codes = codec.model.encode(torch.from_numpy(audio)[None, None], num_quantizers=2).audio_codes[0].numpy()
    assert report.codebooks == tuple(CodebookUse.of(np.bincount(row, minlength=64)) for row in codes)


def test_parts_of_recordings_and_of_sources(codec, recordings):
    report = evaluate(codec.model, recordings, (1,), ["si_sdr"], seconds=0.5, limit_files=2, jobs=1)
    assert [(file.id, file.duration) for file in report.files] == [("0.wav", 0.5), ("1.wav", 0.5)]


def test_processes_give_the_same(codec, recordings):
    seen = []
    reports = [
        evaluate(codec.model, recordings, (1, 2), ["si_sdr"], jobs=jobs, progress=lambda *facts: seen.append(facts))
        for jobs in (1, 2)
    ]
    assert reports[0].files == reports[1].files
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2


def test_a_model_in_training_stays_so(codec, recordings):
    model = make_model(upsampling_ratios=[8, 6, 5, 4]).train()
    report = evaluate(model, recordings, (1,), ["si_sdr"], jobs=1)
    assert model.training
    assert report.files[0].scores is not None


def test_evaluations_that_cannot_be(codec, recordings):
    with pytest.raises(ValueError, match=r"None of the 1 recordings .* damaged.wav: ValueError: .*cannot be read"):
        evaluate(codec.model, recordings / "damaged.wav", metrics=["si_sdr"], jobs=1)
    with pytest.raises(ValueError, match="num_quantizers=7"):
        evaluate(codec.model, recordings, (1, 7))
    with pytest.raises(ValueError, match="limit_files=0"):
        evaluate(codec.model, recordings, limit_files=0)
    with pytest.raises(ValueError, match="seconds=0"):
        evaluate(codec.model, recordings, seconds=0)
    with pytest.raises(ValueError, match="jobs=0"):
        evaluate(codec.model, recordings, jobs=0)


def test_reports_as_json_and_csv(codec, recordings, tmp_path):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(RATE), RATE)
    report = evaluate(codec.model, silent, (1, 2), ["si_sdr", "mel_distance"], jobs=1)
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["files"][0]["scores"]["2"]["si_sdr"] == {"value": None, "reason": "the original is silent"}
    assert content["levels"][1]["metrics"]["si_sdr"]["mean"] is None
    assert [metric["name"] for metric in content["metrics"]] == ["si_sdr", "mel_distance"]
    report.write_csv(tmp_path / "files.csv")
    with open(tmp_path / "files.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["num_quantizers"], row["si_sdr"]) for row in rows] == [
        ("silent.wav", n, "") for n in "12"
    ]
    assert float(rows[1]["mel_distance"]) == report.files[0].scores[2]["mel_distance"].value
    assert rows[0]["reason"] == "si_sdr: the original is silent"
