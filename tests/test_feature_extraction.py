"""The feature extractor where EncodecFeatureExtractor accepts the input, and how it is saved."""

import array
import itertools
import json

import numpy as np
import pytest
import torch
from support.audio_inputs import RATE, noise
from transformers import AutoFeatureExtractor, EncodecFeatureExtractor
from transformers.utils import PaddingStrategy

import mimi_hf
from mimi_hf import MimiFeatureExtractor

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
