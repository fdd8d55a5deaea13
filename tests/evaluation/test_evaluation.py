"""Metrics, evaluation and agreement: against formulas, and against what is done by hand."""

import csv
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from support.corpora import save_model
from support.tiny import make_model

from mimi_hf import MimiConfig
from mimi_hf.audio import read_audio
from mimi_hf.corpus.sources import Example
from mimi_hf.evaluation.agreement import compare
from mimi_hf.evaluation.evaluate import evaluate
from mimi_hf.evaluation.metrics import METRICS, Metric, Score, choose_metrics, score
from mimi_hf.evaluation.picture import draw_spectrograms, power_spectrogram, quality, spectrogram
from mimi_hf.evaluation.pieces import read_pieces
from mimi_hf.evaluation.report import CodebookUse, Summary
from mimi_hf.evaluation.scoring import join_scores
from mimi_hf.evaluation.variants import Whole, open_engine
from mimi_hf.loading import ModelChoice

RATE = 24_000


def make_speech(seconds=3.0, rate=RATE, seed=0):
    """A buzz that rises and falls through two resonances, in syllables with pauses: what speech metrics listen to."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = 600 + 300 * np.sin(2 * np.pi * 1.3 * time), 1700 + 500 * np.sin(2 * np.pi * 0.9 * time)
    voice = np.zeros_like(time)
    for number in range(1, 40):
        gain = sum(np.exp(-(((number * pitch - formant) / 250) ** 2)) for formant in formants)
        voice += gain * np.sin(number * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * time) + 0.6, 0, 1)
    return (0.1 * voice * syllables + 1e-4 * random.standard_normal(len(time))).astype(np.float32)


def noise(samples, seed=1):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """A tiny model with the published frame, and the folder where it lies."""
    folder = save_model(tmp_path_factory.mktemp("codec"))
    return SimpleNamespace(folder=folder, model=ModelChoice(folder).load("cpu"), choice=ModelChoice(folder))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for number, seconds in enumerate((1.0, 2.345, 0.05)):
        soundfile.write(folder / f"{number}.wav", make_speech(seconds, seed=number), RATE, subtype="FLOAT")
    (folder / "damaged.wav").write_text("no audio")
    return folder


# Metrics


@pytest.mark.parametrize("name", METRICS)
def test_metrics_fall_as_noise_rises(name):
    if METRICS[name].missing:
        pytest.skip(f"{METRICS[name].missing} are not installed")
    speech = make_speech(4.6)  # DNSMOS repeats it to 9 s
    gains = (0.0, 0.003, 0.05) if METRICS[name].needs_reference else (0.003, 0.05, 0.2)
    levels = [speech + gain * noise(len(speech)) for gain in gains]
    values = [score(speech, audio, RATE, [name])[name].value for audio in levels]
    if not METRICS[name].higher_is_better:
        values = [-value for value in values]
    assert values[0] > values[1] > values[2], values
    # What each of them can reach.
    tops = {"stoi": 1.0, "pesq": 4.6, "visqol": 4.1, "mel_distance": 0.0, "si_sdr": 100.0}
    assert values[0] >= tops.get(name, 1.0) - 1e-6


def test_si_sdr_is_the_ratio_of_orthogonal_parts():
    target, other = noise(9000, 2).astype(np.float64), noise(9000, 3).astype(np.float64)
    target -= target.mean()
    other -= other.mean()
    other -= (other @ target) / (target @ target) * target
    estimate = target + 0.1 * np.linalg.norm(target) / np.linalg.norm(other) * other
    for gain, offset in ((1.0, 0.0), (-3.0, 0.0), (0.01, 0.5)):  # neither scale nor offset counts
        found = score(target, gain * estimate + offset, RATE, ["si_sdr"])["si_sdr"]
        assert found.value == pytest.approx(20, abs=1e-2)


def test_mel_distance_of_a_gain_is_that_gain():
    audio = 0.3 * noise(RATE)  # far above the floor
    assert score(audio, audio / 2, RATE, ["mel_distance"])["mel_distance"].value == pytest.approx(6.02, abs=0.1)


def test_what_cannot_be_measured_has_a_reason():
    speech = make_speech(1.2)
    cases = {
        "original is silent": (0 * speech, speech),
        "reconstruction is silent": (speech, 1e-6 * speech),
        "too short": (speech[:500], speech[:500]),
        "no audio": (speech[:0], speech[:0]),
        "NaN": (speech, np.full_like(speech, np.nan)),
    }
    installed = choose_metrics()
    for reason, (reference, estimate) in cases.items():
        found = score(reference, estimate, RATE)
        assert list(found) == [metric.name for metric in installed]
        for name, one in found.items():
            assert (one.value is None) == (one.reason is not None)
            if one.value is not None:
                assert math.isfinite(one.value)
            compares = METRICS[name].needs_reference and METRICS[name].needs_sound
            if compares and not (name == "si_sdr" and reason == "too short"):
                assert reason in one.reason, (name, one)


def test_a_package_that_fails_on_one_recording_is_a_reason():
    def fail(*_):
        raise ValueError(b"No utterances\ndetected")

    metric = Metric("mine", "Mine", fail, "nowhere")
    assert score(noise(10), noise(10), RATE, [metric]) == {"mine": Score(reason="ValueError: No utterances detected")}
    metric = Metric("mine", "Mine", lambda *_: math.inf, "nowhere")
    assert score(noise(10), noise(10), RATE, [metric])["mine"].reason == "the result is inf"


def test_metrics_get_the_audio_at_their_rate():
    seen = {}

    def measure(reference, estimate, rate):
        seen[rate] = len(reference), len(estimate)
        return 0.0

    metrics = [Metric(str(rate), "", measure, "", sampling_rate=rate) for rate in (8_000, 16_000, None)]
    score(noise(2400), noise(2400), RATE, metrics)
    assert seen == {8_000: (800, 800), 16_000: (1600, 1600), RATE: (2400, 2400)}


def test_metrics_that_are_missing_or_unknown():
    metric = dataclasses.replace(METRICS["si_sdr"], modules=("no_such_module",), label="Mine")
    with pytest.raises(ImportError, match=r"Mine needs no_such_module, .* pip install 'mimi_hf\[eval\]'"):
        choose_metrics([metric])
    with pytest.raises(ValueError, match=r"no metric 'loudness'. There are: stoi, pesq"):
        choose_metrics(["loudness"])
    with pytest.raises(ValueError, match="No metric is named"):
        choose_metrics([])


def test_audio_of_different_lengths_is_refused():
    with pytest.raises(ValueError, match="has 10 samples and the reconstruction 11"):
        score(noise(10), noise(11), RATE, ["si_sdr"])
    with pytest.raises(ValueError, match=r"shape \(1, 10\)"):
        score(noise(10)[None], noise(10)[None], RATE, ["si_sdr"])


# Sums


def test_use_of_constructed_codes():
    assert CodebookUse.of(np.repeat([3, 0], [8, 56])) == CodebookUse(8, 3.0, 8.0)
    assert CodebookUse.of(np.repeat([5, 0], [1, 63])) == CodebookUse(1, 0.0, 1.0)
    skewed = CodebookUse.of(np.array([4, 2, 1, 1]))
    assert (skewed.used, skewed.entropy) == (4, 1.75)
    assert CodebookUse.of(np.zeros(64, np.int64)) == CodebookUse(0, 0.0, 1.0)


def test_summaries_leave_out_what_has_no_value():
    summary = Summary.of([Score(1.0), Score(reason="silent"), Score(2.0), Score(6.0)])
    assert summary == Summary(3.0, 2.0, 1.5, 4.0, 3)
    assert Summary.of([Score(reason="silent")]) == Summary(None, None, None, None, 0)


def test_the_table_tells_where_a_figure_is_of_fewer_files():
    from mimi_hf.evaluation.tables import _summary

    summary = Summary.of([Score(3.0), Score(None, "silent")])
    assert _summary(summary, METRICS["si_sdr"], 2) == "3.0/3.0 (of 1)"
    assert _summary(summary, METRICS["si_sdr"], 1) == "3.0/3.0"


def test_pieces_count_by_their_seconds():
    assert join_scores([Score(1.0), Score(4.0), Score(reason="silent")], [20.0, 10.0, 20.0]) == Score(2.0)
    assert join_scores([Score(reason="silent")] * 2, [20.0, 10.0]) == Score(reason="silent")


# Evaluation


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


# Agreement


class Constructed:
    """An engine whose codes and audio are given."""

    def __init__(self, name, codes, audio):
        self.name, self.codes, self.audio = name, torch.tensor(codes)[None], audio
        self.config = MimiConfig(num_quantizers=self.codes.shape[1])

    def encode(self, audio, num_quantizers):
        return self.codes[:, :num_quantizers]

    def decode(self, codes):
        return self.audio


def test_agreement_of_constructed_codes(tmp_path):
    path = tmp_path / "four frames.wav"
    soundfile.write(path, 0.1 * noise(4 * 1920), RATE)
    audio = torch.from_numpy(noise(4 * 1920))[None, None]
    first = Constructed("first", [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]], audio)
    second = Constructed("second", [[1, 2, 3, 9], [1, 2, 9, 4], [1, 9, 9, 4]], 1.1 * audio)
    report = compare(first, second, path)
    assert [codebook.equal for codebook in report.codebooks] == [0.75, 0.75, 0.5]
    assert [codebook.equal_so_far for codebook in report.codebooks] == [0.75, 2 / 3, 0.5]
    assert [codebook.frames_so_far for codebook in report.codebooks] == [4, 3, 2]
    assert report.equal == pytest.approx(8 / 12)
    assert report.equal_frames == 0.25
    assert report.snr == report.median_snr == pytest.approx(20, abs=1e-3)
    assert report.largest_difference == pytest.approx(0.1 * float(audio.abs().max()), rel=1e-4)
    assert compare(first, second, path, num_quantizers=1).equal_frames == 0.75
    with pytest.raises(ValueError, match="num_quantizers=4, but first and second both have 1 to 3"):
        compare(first, second, path, num_quantizers=4)


def test_a_model_agrees_with_itself_and_less_with_a_perturbed_one(codec, recordings):
    itself = compare(open_engine("eager", codec.choice), open_engine(str(codec.folder), codec.choice), recordings)
    assert itself.equal == itself.equal_frames == 1.0
    assert {(one.equal, one.equal_so_far) for one in itself.codebooks} == {(1.0, 1.0)}
    assert itself.snr == math.inf
    content = json.loads(json.dumps(itself.to_dict(), allow_nan=False))
    assert content["same_audio"] and content["snr"] is None
    assert [file["reason"] is None for file in content["files"]] == [True, True, True, False]
    found = []
    for strength in (0.003, 0.1):
        model = codec.choice.load("cpu")
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data += strength * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
        found.append(compare(Whole(codec.model, "a"), Whole(model, "b"), recordings))
    assert 1.0 > found[0].equal > found[1].equal
    assert found[0].snr > found[1].snr


@pytest.mark.parametrize("word", ["stream", "native"])
def test_engines_of_one_precision_agree(codec, recordings, word):
    # A partial frame is where transformers' own Mimi differs: ten whole ones.
    engines = [open_engine(name, codec.choice) for name in ("eager", word)]
    report = compare(*engines, recordings / "1.wav", seconds=0.8)
    assert report.equal > 0.99
    assert report.snr > 90


def test_precisions_differ(codec, recordings):
    report = compare(open_engine("float32", codec.choice), open_engine("bfloat16", codec.choice), recordings)
    assert 0.5 < report.equal < 1.0
    assert 15 < report.snr < 60


def test_int8_is_of_eight_bits(tmp_path, recordings):
    folder = save_model(tmp_path, intermediate_size=2**13)  # large enough for weights to become integers
    engine = open_engine("int8", ModelChoice(folder))
    assert torch.int8 in {parameter.dtype for parameter in engine.model.parameters()}
    report = compare(open_engine("eager", ModelChoice(folder)), engine, recordings, seconds=1.0)
    assert 20 < report.snr < math.inf


def test_an_engine_that_gives_nan_fails(tmp_path):
    path = tmp_path / "one frame.wav"
    soundfile.write(path, noise(1920) / 10, RATE)
    good, bad = (
        Constructed(name, [[1], [2]], torch.full((1, 1, 1920), value)) for name, value in (("a", 0.5), ("b", math.nan))
    )
    with pytest.raises(ValueError, match="b decoded the codes to NaN"):
        compare(good, bad, path)


def test_models_of_other_frames_are_not_compared(codec, recordings):
    other = Whole(make_model(), "other")
    with pytest.raises(ValueError, match="cannot be compared: their frame_size is 1920 and 24"):
        compare(Whole(codec.model, "first"), other, recordings)


# Pictures


def test_the_spectrogram_of_a_sine():
    pytest.importorskip("matplotlib")
    sine = np.sin(2 * np.pi * 3000 * np.arange(RATE) / RATE)
    power = power_spectrogram(sine, RATE)
    middle = power[:, power.shape[1] // 2]
    assert middle.argmax() / (len(middle) - 1) * RATE / 2 == pytest.approx(3000, abs=15)
    assert middle.max() == pytest.approx(0, abs=0.2)
    assert power_spectrogram(sine / 10, RATE).max() == pytest.approx(power.max() - 20, abs=1e-3)
    assert power.shape[1] == 101  # steps of 10 ms
    with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
        power_spectrogram(np.zeros((2, 5)), RATE)


def test_spectrograms_without_matplotlib_show_the_same():
    sine = np.sin(2 * np.pi * 2000 * np.arange(RATE) / RATE)
    pixels = draw_spectrograms([sine, np.zeros(RATE)], RATE)
    assert (pixels.dtype, pixels.shape[1:]) == (np.uint8, (202, 3))
    height = (len(pixels) - 4) // 2
    bright = pixels[:, 100].astype(int).sum(axis=1)
    assert bright[:height].argmax() == pytest.approx(height * 6 / 8, abs=3)  # 0 Hz is at the bottom, 8 kHz at the top
    assert (bright[height : height + 4] == 3 * 255).all() and (bright[height + 4 :] < 20).all()


def test_pictures_are_drawn_without_pyplot(codec, recordings):
    pytest.importorskip("matplotlib")
    speech = make_speech(0.5)
    two = spectrogram({"original": speech, "8 codebooks": speech}, RATE)
    assert [axes.get_title(loc="left") for axes in two.axes[:2]] == ["original", "8 codebooks"]
    assert two.axes[0].get_ylim() == (0, 8)
    report = evaluate(codec.model, recordings, (1, 4), ["si_sdr", "mel_distance"], jobs=1)
    panels = quality(report)
    assert [axes.get_title(loc="left").split(",")[0] for axes in panels.axes] == ["SI-SDR", "mel distance"]
    for axes, name in zip(panels.axes, ("si_sdr", "mel_distance"), strict=True):
        drawn = axes.lines[0].get_xydata()
        expected = [(level.bits_per_second / 1000, level.metrics[name].mean) for level in report.levels]
        assert np.allclose(drawn, expected)
