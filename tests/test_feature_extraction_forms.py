"""What the feature extractor takes beyond EncodecFeatureExtractor: forms, rates, channels; and what it refuses."""

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.audio_inputs import RATE, assert_only, noise, wav_bytes

from mimi_hf import MimiFeatureExtractor
from mimi_hf.audio import resample


class Decoder:
    """The part of torchcodec's AudioDecoder that matters."""

    def __init__(self, audio, rate):
        self.samples = SimpleNamespace(data=torch.from_numpy(audio), sample_rate=rate)

    def get_all_samples(self):
        return self.samples


def as_form(form, audio, rate, folder):
    """`audio` in one of the forms that know their own rate."""
    path = folder / f"{audio.shape}-{rate}.wav"
    path.write_bytes(wav_bytes(audio, rate))
    return {
        "dict": lambda: {"array": audio, "sampling_rate": rate, "path": None},
        "dict of lists": lambda: {"array": audio.tolist(), "sampling_rate": float(rate)},
        "dict of tensors": lambda: {"array": torch.from_numpy(audio), "sampling_rate": torch.tensor(rate)},
        "undecoded": lambda: {"bytes": wav_bytes(audio, rate), "path": "elsewhere.wav"},
        "undecoded path": lambda: {"bytes": None, "path": str(path)},
        "bytes": lambda: wav_bytes(audio, rate),
        "str": lambda: str(path),
        "numpy string": lambda: np.str_(path),
        "Path": lambda: Path(path),
        "file": lambda: io.BytesIO(wav_bytes(audio, rate)),
        "decoder": lambda: Decoder(np.atleast_2d(audio), rate),
    }[form]()


FORMS = ["dict", "dict of lists", "dict of tensors", "undecoded", "undecoded path"]
FORMS += ["bytes", "str", "numpy string", "Path", "file", "decoder"]


class TestForms:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("as_batch", [False, True])
    def test_every_form_gives_its_samples(self, form, as_batch, tmp_path):
        audio = noise(700)
        example = as_form(form, audio, RATE, tmp_path)
        batch = MimiFeatureExtractor()([example] if as_batch else example, return_tensors="pt")
        assert batch["input_values"].dtype == torch.float32
        assert_only(audio[None], batch)

    @pytest.mark.parametrize("form", FORMS)
    def test_the_own_rate_wins_over_the_argument(self, form, tmp_path):
        audio = noise(800)
        batch = MimiFeatureExtractor()(as_form(form, audio, 16_000, tmp_path), sampling_rate=48_000)
        assert_only(resample(audio, 16_000, RATE)[None], batch)

    def test_mixed_batch(self, tmp_path):
        rates = [16_000, 48_000, RATE]
        audios = [noise(400 + 10 * i, seed=i) for i in range(len(FORMS))]
        examples = [as_form(form, audios[i], rates[i % 3], tmp_path) for i, form in enumerate(FORMS)]
        plain = [noise(300), torch.from_numpy(noise(310)), noise(320).tolist(), {"array": noise(330)}]
        batch = MimiFeatureExtractor()(tuple(examples + plain), sampling_rate=8_000, return_tensors="np")
        expected = [resample(audio, rates[i % 3], RATE) for i, audio in enumerate(audios)]
        expected += [resample(noise(n), 8_000, RATE) for n in (300, 310, 320, 330)]
        for row, mask, audio in zip(batch["input_values"], batch["padding_mask"], expected, strict=True):
            assert mask.sum() == len(audio)
            np.testing.assert_array_equal(row[0, : len(audio)], audio)
            assert not mask[len(audio) :].any()
            assert not row[0, len(audio) :].any()

    @pytest.mark.parametrize("kind", ["bfloat16", "float16", "needs gradients"])
    def test_tensors(self, kind):
        audio = noise(100).astype(np.float16).astype(np.float32)
        tensor = torch.from_numpy(audio)
        tensor = tensor.requires_grad_() if kind == "needs gradients" else tensor.to(getattr(torch, kind))
        batch = MimiFeatureExtractor()([tensor, tensor[:50]], return_tensors="pt", sampling_rate=RATE)
        assert batch["input_values"].dtype == torch.float32
        assert torch.equal(batch["input_values"][0, 0], tensor.detach().float())
        assert batch["padding_mask"].sum(dim=1).tolist() == [100, 50]

    def test_a_list_of_arrays_or_tensors_is_a_batch_for_stereo_too(self):
        left, right = noise(100, 2)
        for batch in ([left, right], [torch.from_numpy(left), torch.from_numpy(right)]):
            values = MimiFeatureExtractor(feature_size=2)(batch, sampling_rate=RATE)["input_values"]
            np.testing.assert_array_equal(values, [[left, left], [right, right]])

    def test_the_input_is_left_alone(self):
        audio = {"array": noise(400, 2), "sampling_rate": 16_000}
        batch = [audio, noise(300)]
        MimiFeatureExtractor()(batch, padding=True, max_length=100, truncation=True)
        np.testing.assert_array_equal(audio["array"], noise(400, 2))
        np.testing.assert_array_equal(batch[1], noise(300))
        assert list(audio) == ["array", "sampling_rate"]


class TestRatesAndChannels:
    @pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 44_100.0])
    def test_a_sine_keeps_its_frequency_and_duration(self, rate):
        wave = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        values = MimiFeatureExtractor()(wave, sampling_rate=rate, return_tensors="np")["input_values"]
        assert values.shape == (1, 1, RATE)
        assert values.dtype == np.float32
        spectrum = np.abs(np.fft.rfft(values[0, 0] * np.hanning(RATE)))  # in steps of 1 Hz
        assert np.argmax(spectrum) == 440

    @pytest.mark.parametrize("form", ["array", "tensor", "nested list", *FORMS])
    def test_mono_model_takes_the_mean(self, form, tmp_path):
        audio = noise(400, 2)
        plain = {"array": audio, "tensor": torch.from_numpy(audio), "nested list": [audio.tolist()]}
        example = plain[form] if form in plain else as_form(form, audio, RATE, tmp_path)
        batch = MimiFeatureExtractor()(example, sampling_rate=RATE)
        assert_only((audio[:1] + audio[1:]) / 2, batch)

    @pytest.mark.parametrize("shape", [(700,), (1, 700)])
    @pytest.mark.parametrize("form", ["array", *FORMS])
    def test_stereo_model_doubles_mono(self, form, shape, tmp_path):
        audio = noise(700).reshape(shape)
        example = audio if form == "array" else as_form(form, audio, RATE, tmp_path)
        batch = MimiFeatureExtractor(feature_size=2)(example, sampling_rate=RATE)
        assert_only(np.stack([audio.ravel()] * 2), batch)

    def test_stereo_batch_of_all(self):
        batch = MimiFeatureExtractor(feature_size=2)(
            [noise(700, 2), noise(400)], sampling_rate=RATE, return_tensors="np"
        )
        np.testing.assert_array_equal(batch["input_values"][0], noise(700, 2))
        np.testing.assert_array_equal(batch["input_values"][1, :, :400], [noise(400)] * 2)
        assert batch["padding_mask"].sum(axis=1).tolist() == [700, 400]

    def test_surround(self, tmp_path):
        six, sixteen = noise(700, 6), noise(700, 16)
        np.testing.assert_array_equal(
            MimiFeatureExtractor()(six, sampling_rate=RATE)["input_values"][0], six.mean(axis=0, keepdims=True)
        )
        # The orientation of an array with so many rows is not clear, that of a file or a decoder is.
        for form in ("bytes", "decoder"):
            batch = MimiFeatureExtractor()(as_form(form, sixteen, RATE, tmp_path))
            assert_only(sixteen.mean(axis=0, keepdims=True), batch)
        with pytest.raises(ValueError, match="example 0: 6 channels cannot be mixed to 2"):
            MimiFeatureExtractor(feature_size=2)(six, sampling_rate=RATE)


class TestLengths:
    @pytest.mark.parametrize("padding", [True, "longest", "max_length", None])
    def test_padding_and_truncation_together(self, padding):
        batch = MimiFeatureExtractor()(
            [noise(700), noise(300)],
            padding=padding,
            truncation=True,
            max_length=500,
            sampling_rate=RATE,
            return_tensors="pt",
        )
        assert batch["input_values"].shape == (2, 1, 500)
        assert batch["padding_mask"].sum(dim=1).tolist() == [500, 300]
        np.testing.assert_array_equal(batch["input_values"][0, 0], noise(700)[:500])

    def test_max_length_counts_samples_of_the_model(self):
        batch = MimiFeatureExtractor()(noise(1000), sampling_rate=8_000, truncation=True, max_length=2000)
        assert_only(resample(noise(1000), 8_000, RATE)[None, :2000], batch)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"padding": True, "truncation": True}, "Both padding=True and truncation=True.*Give max_length"),
            ({"truncation": True}, "truncation=True needs a length"),
            ({"padding": "max_length"}, "max_length is defined"),
            ({"padding": "longestt"}, "'?longestt'? is not a valid PaddingStrategy.*longest"),
            ({"max_length": 0}, "max_length=0 must be a positive"),
            ({"max_length": -5, "truncation": True}, "max_length=-5 must be a positive"),
            ({"max_length": 2.5}, "max_length=2.5 must be a positive"),
            ({"return_tensors": "tf"}, "tf.* is not a valid TensorType.*pt"),
            ({"padding": False, "return_tensors": "pt"}, "padding=True"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            MimiFeatureExtractor()([noise(10), noise(20)], sampling_rate=RATE, **options)

    def test_unknown_options_are_refused_before_any_work(self):
        with pytest.raises(ValueError, match="TensorType"):
            MimiFeatureExtractor()("nothing.wav", return_tensors="tf")
        with pytest.raises(ValueError, match="PaddingStrategy"):  # EncodecFeatureExtractor lets this one pass
            MimiFeatureExtractor(chunk_length_s=0.01, overlap=0)(noise(10), padding="longestt", sampling_rate=RATE)

    def test_truncation_to_no_chunk(self):
        extractor = MimiFeatureExtractor(chunk_length_s=0.01, overlap=0)
        with pytest.raises(ValueError, match=r"shortest example has 200 samples.*chunk \(240\)"):
            extractor([noise(500), noise(200)], truncation=True, sampling_rate=RATE)


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def test_an_unknown_rate_is_warned_of_once():
    # A rate of its own, as what was warned of in another test is not warned of again.
    extractor, records = MimiFeatureExtractor(sampling_rate=23_456), Records()
    logger = logging.getLogger("mimi_hf.feature_extraction_mimi")
    logger.addHandler(records)
    try:
        extractor(noise(10), sampling_rate=23_456)
        extractor([{"array": noise(10), "sampling_rate": 23_456}, wav_bytes(noise(10), 23_456)])
        assert records.messages == []
        for _ in range(3):
            extractor([noise(10), noise(20)])
        assert len(records.messages) == 1
        assert "taken as 23456 Hz" in records.messages[0]
    finally:
        logger.removeHandler(records)


BAD_EXAMPLES = {
    "NaN": (np.array([0, 0, np.nan, np.nan]), ValueError, "2 of its samples are NaN.*sample 2 of channel 0 .nan"),
    "infinity": (np.array([[0, 0, 0], [0, -np.inf, 0]]), ValueError, "1 of its.*sample 1 of channel 1 .-inf"),
    "too large for float32": (np.array([0, 1e300]), ValueError, "1 of its samples.*sample 1 of channel 0"),
    "empty": (np.zeros(0), ValueError, r"empty, of shape \(0,\)"),
    "empty stereo": (np.zeros((2, 0)), ValueError, r"empty, of shape \(2, 0\)"),
    "empty list": ([], ValueError, "empty"),
    "empty objects": (np.zeros(0, object), ValueError, "empty"),
    "3-d": (np.zeros((2, 1, 10)), ValueError, r"shape is \(2, 1, 10\).*\(channels, samples\).*list of examples"),
    "0-d": (np.array(0.5), ValueError, r"shape is \(\)"),
    "number": (0.5, ValueError, r"shape is \(\)"),
    "transposed": (np.zeros((100, 2)), ValueError, r"shape is \(100, 2\).*\(channels, samples\).*Transpose"),
    "short transposed": (np.zeros((6, 2)), ValueError, r"shape is \(6, 2\).*Transpose"),
    "16 rows": (np.zeros((16, 700)), ValueError, r"shape is \(16, 700\).*up to 8 channels"),
    "int16": (np.zeros(5, np.int16), ValueError, "int16.*Divide.*32768"),
    "int32": (np.zeros(5, np.int32), ValueError, "int32.*2147483648"),
    "int64": (np.zeros(5, np.int64), ValueError, "int64"),
    "uint8": (np.full(5, 128, np.uint8), ValueError, r"uint8.*\(x - 128\) / 128"),
    "int16 tensor": (torch.zeros(5, dtype=torch.int16), ValueError, "int16.*32768"),
    "list of int16": ([0, 300, -500], ValueError, "int64.*32768"),
    "least int": ([0, -(2**63)], ValueError, "int64"),
    "huge int": ([0, 2**70], TypeError, "1180591620717411303424 is of type int.*real numbers in"),
    "bools": (np.ones(5, bool), TypeError, "type is bool"),
    "complex": (np.ones(5, complex), TypeError, "complex128.*real numbers"),
    "strings": (np.array(["a", "b"]), TypeError, "real numbers"),
    "None": (None, TypeError, "None is of type NoneType.*array"),
    "None in a list": ([0.1, None, 0.2], TypeError, "None is of type NoneType"),
    "text in a list": ([0.1, "a"], TypeError, "real numbers"),
    "ragged": ([[0.1, 0.2], [0.3]], ValueError, "different lengths"),
    "object": (object(), TypeError, "of type object"),
    "set": ({0.1}, TypeError, "of type set"),
    "meta tensor": (torch.zeros(5, device="meta"), ValueError, "meta"),
    "no file": ("nothing.wav", ValueError, "nothing.wav' does not exist"),
    "a folder": (Path("/"), ValueError, "is a folder"),
    "no audio": (b"text", ValueError, "4 bytes cannot be read as audio"),
    "empty bytes": (b"", ValueError, "0 bytes cannot be read as audio"),
    "empty dict": ({}, ValueError, "'array', 'bytes' or 'path'"),
    "other dict": ({"audio": 1, "path": None}, ValueError, r"\['audio', 'path'\]"),
    "path of no type": ({"path": 5}, TypeError, "from int"),
    "rate 0": ({"array": [0.1], "sampling_rate": 0}, ValueError, "sampling_rate=0 must be positive"),
    "rate nan": ({"array": [0.1], "sampling_rate": float("nan")}, ValueError, "must be positive"),
    "rate text": ({"array": [0.1], "sampling_rate": "16000"}, TypeError, "'16000' must be a number"),
    "NaN file": (wav_bytes(np.array([0, np.nan]), RATE), ValueError, "1 of its samples are NaN.*sample 1"),
    "vanishes": ({"array": [0.1] * 10, "sampling_rate": 10**9}, ValueError, "too short"),
}


class BrokenDecoder:
    def get_all_samples(self):
        raise RuntimeError("could not decode")


class TestErrors:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("name", BAD_EXAMPLES)
    @pytest.mark.parametrize("feature_size", [1, 2])
    def test_names_the_example(self, name, feature_size):
        example, kind, message = BAD_EXAMPLES[name]
        extractor = MimiFeatureExtractor(feature_size=feature_size)
        batch = [noise(10), noise(10), example]
        with pytest.raises(kind, match=f"^Audio example 2: .*{message}") as error:
            extractor(batch, sampling_rate=RATE)
        assert type(error.value) is kind
        if not isinstance(example, list):
            with pytest.raises(kind, match=f"^Audio example 0: .*{message}"):
                extractor(example, sampling_rate=RATE)

    def test_broken_decoder(self):
        with pytest.raises(ValueError, match="example 1: could not decode"):
            MimiFeatureExtractor()([noise(10), BrokenDecoder()], sampling_rate=RATE)

    @pytest.mark.parametrize("batch", [[], (), range(0)])
    def test_empty_batch(self, batch):
        with pytest.raises(ValueError, match="raw_audio is empty"):
            MimiFeatureExtractor()(batch, sampling_rate=RATE)

    @pytest.mark.parametrize("rate", [0, -24_000, float("inf"), float("nan")])
    def test_sampling_rate(self, rate):
        with pytest.raises(ValueError, match=r"sampling_rate=.* must be positive"):
            MimiFeatureExtractor()(noise(10), sampling_rate=rate)
        with pytest.raises(TypeError, match=r"sampling_rate=.* must be a number"):
            MimiFeatureExtractor()(noise(10), sampling_rate="high")
