"""Pipelines: items of every form, in batches, give what they give alone."""

import io
import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, Value
from support.tiny import FRAME, make_audio
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import mimi_hf

LENGTHS = (100, 17, 500, FRAME, 1000, 3 * FRAME)


@pytest.fixture(scope="module")
def tokenize(model):
    return pipeline("audio-tokenization", model=model, device="cpu")


@pytest.fixture(scope="module")
def detokenize(model):
    return pipeline("audio-detokenization", model=model, device="cpu")


@pytest.fixture(scope="module")
def extract(model):
    return pipeline("feature-extraction", model=model, device="cpu")


@pytest.fixture(scope="module")
def clips():
    return [make_audio(length, seed=length)[0].numpy() for length in LENGTHS]


@pytest.fixture(scope="module")
def alone(model, clips):
    """The codes of each clip by itself."""
    return [model.encode(torch.from_numpy(clip)[None]).audio_codes[0].numpy() for clip in clips]


def check_codes(results, alone, lengths=LENGTHS):
    assert len(results) == len(alone)
    for result, codes, length in zip(results, alone, lengths, strict=True):
        assert result["audio_codes"].dtype == np.int64
        np.testing.assert_array_equal(result["audio_codes"], codes)
        assert (result["num_samples"], result["sampling_rate"]) == (length, 24_000)


# Audio to codes


@pytest.mark.parametrize("batch_size", [1, 2, 4, 10])
def test_each_item_gets_the_codes_that_it_gets_alone(tokenize, clips, alone, batch_size):
    check_codes(tokenize(clips, batch_size=batch_size), alone)
    check_codes(tokenize(tuple(clips), batch_size=batch_size), alone)
    check_codes([tokenize(clip) for clip in clips], alone)
    fewer = tokenize(clips, batch_size=batch_size, num_quantizers=3)
    check_codes(fewer, [codes[:3] for codes in alone])


def test_parameters_are_set_once_or_per_call(model, clips, alone):
    tokenize = pipeline("audio-tokenization", model=model, num_quantizers=2, sampling_rate=24_000, batch_size=3)
    check_codes(tokenize(clips), [codes[:2] for codes in alone])
    check_codes(tokenize(clips, num_quantizers=5), [codes[:5] for codes in alone])
    for wrong, error in ({"num_quantizers": 7}, ValueError), ({"sampling_rate": "16k"}, TypeError):
        with pytest.raises(error, match=next(iter(wrong))):
            tokenize(clips, **wrong)
    with pytest.raises(TypeError, match="num_quantisers"):
        tokenize(clips, num_quantisers=2)


def test_long_audio_equals_the_model(tokenize, model):
    audio = make_audio(1000 * FRAME + 5)  # some tiles
    np.testing.assert_array_equal(tokenize(audio[0])["audio_codes"], model.encode(audio).audio_codes[0])


def wav(audio, rate):
    file = io.BytesIO()
    soundfile.write(file, audio.T, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_every_form_of_an_item_gives_the_same(tokenize, model, tmp_path):
    audio, rate = make_audio(300, channels=2)[0].numpy(), 16_000
    inputs = mimi_hf.MimiFeatureExtractor()(audio, sampling_rate=rate, return_tensors="pt")
    expected = model.encode(**inputs).audio_codes[0]
    path = tmp_path / "a recording, ä.wav"
    path.write_bytes(wav(audio, rate))
    samples = SimpleNamespace(data=torch.from_numpy(audio), sample_rate=rate)
    forms = [
        audio,
        torch.from_numpy(audio),
        audio.tolist(),
        str(path),
        path,
        path.read_bytes(),
        {"array": audio, "sampling_rate": rate},
        {"raw": audio, "sampling_rate": rate},
        {"audio": torch.from_numpy(audio), "sampling_rate": rate},
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
        {"audio": {"bytes": path.read_bytes(), "path": "elsewhere.wav"}, "text": "a row"},
        SimpleNamespace(get_all_samples=lambda: samples),
    ]
    results = tokenize(forms, batch_size=4, sampling_rate=rate)
    check_codes(results, [expected] * len(forms), [450] * len(forms))
    for form in (form for form in forms if not isinstance(form, list)):
        np.testing.assert_array_equal(tokenize(form, sampling_rate=rate)["audio_codes"], expected)
    mono = audio[0].tolist()  # a list of numbers is one item
    np.testing.assert_array_equal(tokenize(mono)["audio_codes"], tokenize(audio[0])["audio_codes"])


@pytest.fixture
def server(tmp_path):
    class Handler(SimpleHTTPRequestHandler):
        log_message = lambda *_: None  # noqa: E731

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_urls_are_fetched(tokenize, clips, alone, server, tmp_path):
    (tmp_path / "one.wav").write_bytes(wav(clips[0], 24_000))
    url = f"{server}/one.wav"
    check_codes(tokenize([url, {"bytes": None, "path": url}], batch_size=2), [alone[0]] * 2, [LENGTHS[0]] * 2)
    for wrong in (f"{server}/none.wav", "http://127.0.0.1:9/refused.wav", "strange://one.wav"):
        with pytest.raises(ValueError, match=r"Audio example 1: .*cannot be fetched.*Check the address") as raised:
            tokenize([clips[0], wrong])
        assert wrong in str(raised.value)


# Lists, generators, data sets


def test_generators_and_iterators_are_read_as_they_are_asked_for(tokenize, clips, alone):
    taken = []

    def generate():
        for clip in clips:
            taken.append(len(clip))
            yield clip

    results = iter(tokenize(generate(), batch_size=2))
    first = next(results)
    assert len(taken) <= 2  # no more than a batch
    check_codes([first, *results], alone)
    check_codes(list(tokenize(map(np.copy, clips))), alone)
    assert list(tokenize(clip for clip in [])) == tokenize([]) == []


@pytest.fixture(scope="module")
def data_set(clips):
    rows = [{"audio": {"bytes": wav(clip, 24_000), "path": f"{i}.wav"}, "text": "said"} for i, clip in enumerate(clips)]
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}, "text": Value("string")})
    return Dataset.from_list(rows, features=features).cast_column("audio", Audio(decode=False))


def test_data_sets_and_their_columns(tokenize, alone, data_set):
    streamed = data_set.to_iterable_dataset()
    for source in (KeyDataset(data_set, "audio"), data_set, data_set["audio"], data_set[:]["audio"], streamed):
        check_codes(list(tokenize(source, batch_size=4)), alone)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_read_ahead(tokenize, alone, data_set, num_workers):
    check_codes(list(tokenize(KeyDataset(data_set, "audio"), batch_size=2, num_workers=num_workers)), alone)


def test_a_pipeline_is_pickled(tokenize, clips, alone):
    # As it is on macOS, to be sent to workers.
    check_codes(pickle.loads(pickle.dumps(tokenize))(clips), alone)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_bad_item_is_named(tokenize, clips, tmp_path, batch_size):
    (tmp_path / "text.wav").write_text("no audio")
    for bad, error, message in (
        (tmp_path / "text.wav", ValueError, "cannot be read as audio"),
        (tmp_path / "none.wav", ValueError, "does not exist"),
        (np.zeros(0), ValueError, "empty"),
        (np.full(50, np.nan), ValueError, "NaN"),
        (np.zeros(50, dtype=np.int16), ValueError, "32768"),
        (np.zeros((2, 1, 50)), ValueError, "as a list"),
        ({"text": "a row"}, ValueError, "'text'"),
        (0.5, ValueError, "shape"),
        (None, TypeError, "NoneType"),
    ):
        with pytest.raises(error, match=rf"Audio example 2: .*{message}"):
            tokenize([clips[0], clips[1], bad, clips[2]], batch_size=batch_size)
        with pytest.raises(error, match=rf"Audio example 1: .*{message}"):
            list(tokenize((item for item in [clips[0], bad]), batch_size=batch_size))
        with pytest.raises(error, match=message):
            tokenize(bad)


# Codes to audio


@pytest.mark.parametrize("batch_size", [1, 3])
def test_there_and_back_equals_the_model(tokenize, detokenize, model, clips, batch_size):
    results = detokenize(tokenize(clips, batch_size=batch_size), batch_size=batch_size)
    streamed = detokenize(tokenize((clip for clip in clips), batch_size=batch_size), batch_size=batch_size)
    for clip, result, again in zip(clips, results, streamed, strict=True):
        with torch.no_grad():
            expected = model(torch.from_numpy(clip)[None]).audio_values[0].numpy()
        for audio in (result["audio"], again["audio"]):
            assert audio.dtype == np.float32
            np.testing.assert_allclose(audio, expected, atol=1e-5 * np.abs(expected).max())
        assert result["sampling_rate"] == 24_000
    check = tokenize(results)  # what it gives is an item of the other
    assert [item["num_samples"] for item in check] == list(LENGTHS)


def test_every_form_of_codes_gives_the_same(detokenize, model, alone):
    codes = alone[2]
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(codes)[None]).audio_values[0].numpy()
    forms = [
        codes,
        codes.astype(np.uint16),
        torch.from_numpy(codes),
        codes.tolist(),
        {"audio_codes": codes.tolist()},
        {"audio_codes": codes, "num_samples": None},
    ]
    for result in [*detokenize(forms, batch_size=3), *(detokenize(form) for form in forms)]:
        np.testing.assert_allclose(result["audio"], expected, atol=1e-5 * np.abs(expected).max())
    row = {"audio_codes": codes.astype(np.uint16), "audio_num_samples": 99, "text": "of a data set"}
    np.testing.assert_array_equal(detokenize([row])[0]["audio"], detokenize(codes)["audio"][:, :99])
    assert detokenize(codes[:, :0])["audio"].shape == (1, 0)


def test_batches_hold_any_numbers_of_codebooks_and_frames(detokenize, alone):
    ragged = [codes[: 1 + i % 3] for i, codes in enumerate(alone)]
    for codes, result in zip(ragged, detokenize(ragged, batch_size=len(ragged)), strict=True):
        expected = detokenize(codes)["audio"]
        np.testing.assert_allclose(result["audio"], expected, atol=1e-5 * np.abs(expected).max())


def test_bad_codes_are_named(detokenize, alone):
    for bad, error, message in (
        (alone[0] + 64, ValueError, "entries 0 to 63"),
        (-alone[0] - 1, ValueError, "Remove padding"),
        (alone[0].astype(np.float32), TypeError, "integers"),
        (alone[0][None], ValueError, "list"),
        (np.zeros((7, 5), dtype=np.int64), ValueError, "num_quantizers=7"),
        ([[1, 2], [3]], ValueError, "inhomogeneous"),
        ({"codes": alone[0]}, ValueError, "audio_codes"),
        ({"audio_codes": alone[0], "num_samples": 121}, ValueError, "num_samples=121"),
        ("codes.npy", TypeError, "integers"),
    ):
        with pytest.raises(error, match=rf"Codes example 1: .*{message}"):
            detokenize([alone[1], bad], batch_size=2)


# Latents


@pytest.mark.parametrize("batch_size", [1, 4])
def test_feature_extraction_gives_latents(extract, model, clips, batch_size):
    tensors = extract(clips, return_tensors=True, batch_size=batch_size)
    lists = extract(clips, batch_size=batch_size)
    for clip, tensor, nested in zip(clips, tensors, lists, strict=True):
        with torch.no_grad():
            expected = model.encode_latents(torch.from_numpy(clip)[None]).transpose(1, 2)
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-4)
        assert nested == tensor.tolist()
