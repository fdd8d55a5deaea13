"""The feature extractor: as EncodecFeatureExtractor where that accepts the input, and what goes beyond it."""

import array
import io
import itertools
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor, EncodecFeatureExtractor
from transformers.utils import PaddingStrategy

import mimi_hf
from mimi_hf import MimiFeatureExtractor
from mimi_hf.audio import resample

RATE = 24_000
HUB_CONFIG = {
    "chunk_length_s": None,
    "feature_extractor_type": "EncodecFeatureExtractor",
    "feature_size": 1,
    "overlap": None,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": RATE,
}


def noise(samples, channels=None, seed=0):
    """(N,) float32, or (C, N) with `channels`."""
    shape = (samples,) if channels is None else (channels, samples)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def assert_same_batch(actual, expected):
    """Bit for bit: keys and their order, containers, types, shapes, values."""
    assert type(actual) is type(expected)
    assert list(actual) == list(expected)
    for key in expected:
        assert type(actual[key]) is type(expected[key])
        assert len(actual[key]) == len(expected[key])
        for one, other in zip(actual[key], expected[key], strict=True):
            assert (type(one), one.dtype, one.shape) == (type(other), other.dtype, other.shape)
            assert np.array_equal(np.asarray(one), np.asarray(other))


def assert_only(audio, batch):
    """The batch holds this audio (C, N), and only it."""
    assert len(batch["input_values"]) == 1
    np.testing.assert_array_equal(batch["input_values"][0], audio)


# ---- As EncodecFeatureExtractor --------------------------------------------------------------------------------------

MONO_INPUTS = {
    "float32": noise(700),
    "float64": noise(700).astype(np.float64),
    "float16": noise(700).astype(np.float16),
    "strided": noise(1400)[::2],
    "tensor": torch.from_numpy(noise(700)),
    "float64 tensor": torch.from_numpy(noise(700)).double(),
    "list": noise(700).tolist(),
    "tuple": tuple(noise(700).tolist()),
    "list of ints": [0, 0, 1, -1, 0],
    "list of numpy scalars": list(noise(50)),
    "list of tensor scalars": list(torch.from_numpy(noise(50))),
    "range": range(2),
    "array.array": array.array("f", noise(50)),
    "louder than 1": noise(700) * 7,
    "batch of one": [noise(700)],
    "batch": [noise(700), noise(450, seed=1), noise(701, seed=2)],
    "tuple of arrays": (noise(700), noise(450, seed=1)),
    "equal lengths": [noise(700), noise(700, seed=1)],
    "mixed types": [noise(700).astype(np.float64), noise(450).astype(np.float16), noise(20).tolist()],
    "lists": [noise(300).tolist(), noise(450, seed=1).tolist()],
    "2-d list": [noise(300).tolist(), noise(300, seed=1).tolist()],
}
STEREO_INPUTS = {
    "float32": noise(700, 2),
    "float64": noise(700, 2).astype(np.float64),
    "float16": noise(700, 2).astype(np.float16),
    "transposed view": np.ascontiguousarray(noise(700, 2).T).T,
    "tensor": torch.from_numpy(noise(700, 2)),
    "2 samples": noise(2, 2),
    "1 sample": noise(1, 2),
    "batch": [noise(700, 2), noise(450, 2, seed=1), noise(701, 2, seed=2)],
    "equal lengths": [noise(700, 2), noise(700, 2, seed=1)],
    "nested lists": [noise(300, 2).tolist(), noise(450, 2, seed=1).tolist()],
    "lists of arrays": [list(noise(300, 2)), tuple(noise(450, 2, seed=1))],
}
ALL_INPUTS = [(1, name) for name in MONO_INPUTS] + [(2, name) for name in STEREO_INPUTS]
CHUNKS = [
    {},
    {"chunk_length_s": 0.01, "overlap": 0.25},
    {"chunk_length_s": 0.01},
    {"chunk_length_s": 0.01, "overlap": 0},
]
OPTIONS = [
    dict(zip(("padding", "truncation", "max_length", "return_tensors"), values, strict=True))
    for values in itertools.product(
        (None, True, False, "longest", "max_length", "do_not_pad", PaddingStrategy.MAX_LENGTH),
        (False, True),
        (None, 500, 1000),
        (None, "np", "pt"),
    )
]


def call(extractor, *args, **kwargs):
    try:
        return extractor(*args, sampling_rate=RATE, **kwargs)
    except Exception as error:
        return error


class TestAsEncodec:
    @pytest.mark.parametrize("padding_side", ["right", "left"])
    @pytest.mark.parametrize("chunks", CHUNKS, ids=str)
    @pytest.mark.parametrize(("channels", "name"), ALL_INPUTS)
    def test_all_that_it_accepts_is_the_same_bit_for_bit(self, channels, name, chunks, padding_side):
        """And what it refuses because of the lengths is refused here, but for padding together with truncation."""
        raw_audio = (MONO_INPUTS if channels == 1 else STEREO_INPUTS)[name]
        arguments = {"feature_size": channels, "padding_side": padding_side, "padding_value": -0.125, **chunks}
        ours, theirs = MimiFeatureExtractor(**arguments), EncodecFeatureExtractor(**arguments)
        accepted = 0
        for options in OPTIONS:
            expected = call(theirs, raw_audio, **options)
            actual = call(ours, raw_audio, **options)
            if not isinstance(expected, Exception):
                if expected["input_values"][0].shape[-1] == 0:  # truncated to no chunk at all
                    assert "leaves nothing" in str(actual)
                    continue
                accepted += 1
                assert not isinstance(actual, Exception), (options, actual)
                assert_same_batch(actual, expected)
            elif "Both padding and truncation" not in str(expected) or options["max_length"] is None:
                assert isinstance(actual, ValueError), (options, expected, actual)
        assert accepted >= 20

    @pytest.mark.parametrize("chunk_length_s", [None, 1.0, 0.5, 2])
    @pytest.mark.parametrize("overlap", [None, 0, 0.01, 0.5, 0.99999, 1.0])
    def test_derived_lengths(self, chunk_length_s, overlap):
        arguments = {"chunk_length_s": chunk_length_s, "overlap": overlap, "sampling_rate": 16_000}
        ours, theirs = MimiFeatureExtractor(**arguments), EncodecFeatureExtractor(**arguments)
        for extractor in (ours, theirs):  # they follow later changes
            extractor.sampling_rate = RATE
        assert (ours.chunk_length, ours.chunk_stride) == (theirs.chunk_length, theirs.chunk_stride)

    def test_attributes(self):
        ours, theirs = MimiFeatureExtractor().to_dict(), EncodecFeatureExtractor().to_dict()
        theirs.pop("feature_extractor_type")
        assert ours == theirs
        assert MimiFeatureExtractor.model_input_names == EncodecFeatureExtractor.model_input_names


class TestSaving:
    @pytest.fixture
    def hub_folder(self, tmp_path):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(HUB_CONFIG))
        return tmp_path

    def test_reads_the_hub(self, hub_folder):
        extractor = MimiFeatureExtractor.from_pretrained(hub_folder)
        assert {**extractor.to_dict(), "feature_extractor_type": "EncodecFeatureExtractor"} == HUB_CONFIG

    @pytest.mark.parametrize("extra", [{}, {"processor_class": "SomeProcessor"}])
    def test_auto_class_gives_ours_for_what_we_saved_and_transformers_its_own(self, hub_folder, tmp_path, extra):
        saved = tmp_path / "saved"
        MimiFeatureExtractor.from_pretrained(hub_folder, padding_side="left").save_pretrained(saved)
        config = json.loads((saved / "preprocessor_config.json").read_text())
        assert {**config, "feature_extractor_type": "EncodecFeatureExtractor"} == {**HUB_CONFIG, "padding_side": "left"}
        (saved / "preprocessor_config.json").write_text(json.dumps({**config, **extra}))
        mimi_hf.MimiConfig().save_pretrained(saved)
        loaded = AutoFeatureExtractor.from_pretrained(saved)
        assert type(loaded) is MimiFeatureExtractor
        assert loaded.to_dict() == config  # transformers keeps the class of a processor elsewhere
        mimi_hf.unregister()
        try:
            assert type(AutoFeatureExtractor.from_pretrained(saved)) is EncodecFeatureExtractor
        finally:
            mimi_hf.register()

    def test_auto_class_follows_the_model_where_no_type_is_named(self, hub_folder):
        config = {key: value for key, value in HUB_CONFIG.items() if key != "feature_extractor_type"}
        (hub_folder / "preprocessor_config.json").write_text(json.dumps(config))
        mimi_hf.MimiConfig().save_pretrained(hub_folder)
        assert type(AutoFeatureExtractor.from_pretrained(hub_folder)) is MimiFeatureExtractor

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"feature_size": 3}, "feature_size=3 must be 1"),
            ({"sampling_rate": 0}, "sampling_rate=0 must be positive"),
            ({"padding_side": "both"}, "padding_side='both' must be"),
            ({"chunk_length_s": 0}, "chunk_length_s=0 must be positive"),
            ({"overlap": 1.5}, "overlap=1.5 must be from 0 to 1"),
        ],
    )
    def test_constructor_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            MimiFeatureExtractor(**arguments)


# ---- Beyond it -------------------------------------------------------------------------------------------------------


class Decoder:
    """The part of torchcodec's AudioDecoder that matters."""

    def __init__(self, audio, rate):
        self.samples = SimpleNamespace(data=torch.from_numpy(audio), sample_rate=rate)

    def get_all_samples(self):
        return self.samples


def wav_bytes(audio, rate):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.atleast_2d(audio).T, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


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


# ---- Errors ----------------------------------------------------------------------------------------------------------

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
