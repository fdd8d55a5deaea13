import io
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pytest
import soundfile
import torch
from fsspec.implementations.memory import MemoryFileSystem
from support.tiny import FRAME, make_audio, make_model
from support.tokenized import LENGTHS, RATE, UNTYPED, assert_tokenized, encode_all, encode_alone, make_dataset, make_wav

from mimi_hf import AudioDetokenizer, AudioTokenizer, MimiFeatureExtractor


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def expected(model):
    return encode_all(model)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AudioTokenizer(checkpoint, num_quantizers=3)


@pytest.mark.parametrize("batched", [{"batched": True, "batch_size": 4}, {}])
def test_map_adds_the_codes_of_each_example_alone(tokenizer, expected, batched, tmp_path):
    dataset = make_dataset()
    tokenized = dataset.map(tokenizer, **batched)
    assert_tokenized(tokenized, expected)
    codes = datasets.List(datasets.List(datasets.Value("uint16")))
    assert tokenized.features == {
        **dataset.features,
        "audio_codes": codes,
        "audio_num_samples": datasets.Value("int64"),
    }
    assert tokenized.features == tokenizer.output_features(dataset.features)
    assert tokenized.remove_columns(["audio_codes", "audio_num_samples"]).to_dict() == dataset.to_dict()
    tokenized.to_parquet(tmp_path / "data.parquet")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded.features["audio_codes"] == codes
    assert_tokenized(loaded, expected)


@pytest.mark.parametrize("batched", [{"batched": True, "batch_size": 4}, {}])
def test_iterable_datasets_too(tokenizer, expected, batched):
    stream = make_dataset().to_iterable_dataset().cast_column("audio", datasets.Audio(decode=False))
    assert_tokenized(stream.map(tokenizer, **batched), expected)
    typed = stream.map(tokenizer, **batched, features=tokenizer.output_features(stream.features))
    assert typed.features["audio_codes"] == datasets.List(datasets.List(datasets.Value("uint16")))
    assert_tokenized(typed, expected)


def test_the_window_of_the_model_does_not_matter(checkpoint, expected):
    tokenizer = AudioTokenizer(checkpoint, num_quantizers=3, batch_seconds=0.01)
    assert_tokenized(make_dataset().map(tokenizer, batched=True), expected)


def test_any_form_of_column(tokenizer, expected, tmp_path):
    dataset = make_dataset()
    files = [tmp_path / f"ä {i}.wav" for i in range(len(dataset))]
    for path, row in zip(files, dataset, strict=True):
        path.write_bytes(row["audio"]["bytes"])
    arrays = [make_audio(samples, seed=seed)[0, 0].numpy() for seed, samples in enumerate(LENGTHS)]
    decoders = [
        SimpleNamespace(get_all_samples=lambda a=a: SimpleNamespace(data=torch.tensor(a)[None], sample_rate=RATE))
        for a in arrays
    ]
    plain = {
        "decoders": decoders,
        "paths": [str(path) for path in files],
        "urls": [f"file://{path}" for path in files],
        "path dictionaries": [{"bytes": None, "path": str(path)} for path in files],
        "bytes": [row["audio"]["bytes"] for row in dataset],
        "array dictionaries": [{"array": array, "sampling_rate": RATE} for array in arrays],
        "arrays": arrays,
        "lists": [array.tolist() for array in arrays],
    }
    for name, values in plain.items():
        batch = tokenizer({"audio": values})
        for i, codes in enumerate(expected):
            np.testing.assert_array_equal(batch["audio_codes"][i], codes, err_msg=name)
            alone = tokenizer({"audio": values[i]})
            np.testing.assert_array_equal(alone["audio_codes"], codes, err_msg=name)
            assert alone["audio_codes"].dtype == np.uint16
        if name == "decoders":
            continue
        mapped = datasets.Dataset.from_dict({"audio": values}).map(tokenizer, batched=True)
        assert_tokenized(mapped, expected)
        assert_tokenized(datasets.Dataset.from_dict({"audio": values}).map(tokenizer), expected)


@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow"])
def test_formatted_data_sets(tokenizer, model, kind):
    audio = make_audio(2400, batch=3)[:, 0].numpy()
    dataset = datasets.Dataset.from_dict({"audio": [{"array": a, "sampling_rate": RATE} for a in audio]})
    expected = [encode_alone(model, a) for a in audio]
    if kind == "arrow":
        for batched in (True, False):
            with pytest.raises(TypeError, match="come as Table, but a mapping"):
                dataset.with_format("arrow").map(tokenizer, batched=batched)
        return
    for arguments in ({"batched": True}, {}):
        mapped = dataset.with_format(kind).map(tokenizer, **arguments).with_format(None)
        for row, codes in zip(mapped, expected, strict=True):
            np.testing.assert_array_equal(row["audio_codes"], codes)


def test_an_audio_column_is_read_from_its_files_at_their_own_rate(tokenizer, model):
    wav = make_wav(1600, rate=16_000)
    dataset = datasets.Dataset.from_dict({"audio": [{"bytes": wav, "path": None}]}, datasets.Features(audio=UNTYPED))
    dataset = dataset.cast_column("audio", datasets.Audio())  # which only torchcodec could decode
    samples = MimiFeatureExtractor()(wav)["input_values"][0]
    for batched in (True, False):
        mapped = dataset.map(tokenizer, batched=batched)
        assert mapped.features["audio"] == dataset.features["audio"]
        row = mapped.remove_columns("audio")[0]
        np.testing.assert_array_equal(row["audio_codes"], encode_alone(model, samples))
        assert row["audio_num_samples"] == 2400


def test_stereo_models_and_arrays_without_a_rate():
    model = make_model(audio_channels=2)
    audio = make_audio(480, channels=2)
    tokenizer = AudioTokenizer(model, sampling_rate=RATE, num_quantizers=2)
    batch = tokenizer({"audio": [audio[0].numpy(), audio[0, 0].numpy()]})
    codes = model.encode(audio, num_quantizers=2).audio_codes[0]
    np.testing.assert_array_equal(batch["audio_codes"][0], codes)
    half = AudioTokenizer(model, sampling_rate=RATE // 2)({"audio": audio[0, 0].tolist()})
    assert half["audio_num_samples"] == 960
    back = AudioDetokenizer(model, audio_format="array")(batch)
    assert back["audio"][0]["array"].shape == (2, 480)


# What goes wrong


def test_what_cannot_be_read_raises_or_is_skipped(checkpoint, expected):
    dataset = make_dataset()
    audio = list(dataset["audio"])
    audio[0] = audio[3] = {"bytes": b"no audio", "path": "broken.wav"}
    audio[1] = None
    dataset = make_dataset(audio=audio)
    with pytest.raises(ValueError, match=r"Audio example 0.*Column 'audio', path 'broken.wav'.*on_error='skip'"):
        dataset.map(AudioTokenizer(checkpoint), batched=True)
    tokenizer = AudioTokenizer(checkpoint, num_quantizers=3, on_error="skip")
    # The first batch holds nothing but failures: types stay the same all the same.
    tokenized = dataset.map(tokenizer, batched=True, batch_size=2)
    assert tokenized.features == tokenizer.output_features(dataset.features)
    for i, row in enumerate(tokenized):
        failed = i in (0, 1, 3)
        assert bool(row["audio_error"]) is failed
        assert row["audio_num_samples"] == (0 if failed else LENGTHS[i])
        np.testing.assert_array_equal(row["audio_codes"], np.empty((3, 0)) if failed else expected[i])
    assert tokenized["text"] == dataset["text"]
    detokenizer = AudioDetokenizer(checkpoint, audio_column="back")
    back = tokenized.map(
        detokenizer, features=detokenizer.output_features(tokenized.features), batched=True, batch_size=2
    )
    assert [row["back"] is None for row in back] == [i in (0, 1, 3) for i in range(6)]


class Unreachable(MemoryFileSystem):
    protocol = "unreachable"

    def cat_file(self, path, **options):
        raise Exception("a client's own kind of error")


def test_what_cannot_be_fetched_is_told_whatever_the_client_raises(checkpoint):
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    tokenizer = AudioTokenizer(checkpoint, num_quantizers=3, on_error="skip")
    for url in ("unreachable://a.wav", "http://127.0.0.1:9/refused.wav", "strange://a.wav"):
        for value in (url, {"bytes": None, "path": url}):
            (error,) = tokenizer({"audio": [value]})["audio_error"]
            assert f"{url} cannot be fetched" in error


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_quantizers": 7}, ValueError, "num_quantizers=7 .* from 1 to 6"),
        ({"on_error": "ignore"}, ValueError, "on_error='ignore'"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' must be float32, bfloat16 or float16"),
        ({"batch_seconds": 0}, ValueError, "batch_seconds=0"),
        ({"model": 3}, TypeError, "of type int"),
        ({"model": "kyutai/absent"}, OSError, "hf download kyutai/absent"),
        ({"model": "{empty}"}, OSError, "cannot be loaded: .* holds no model"),
        ({"model": "{bert}"}, ValueError, "cannot be loaded: it is of type 'bert'"),
        ({"model": "{damaged}"}, ValueError, "cannot be loaded: .*config.json is damaged"),
    ],
)
def test_mistakes_are_explained_at_once(checkpoint, tmp_path, arguments, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text('{"model_type": "mi')
    places = {f"{{{name}}}": tmp_path / name for name in ("empty", "bert", "damaged")}
    arguments = {"model": checkpoint, **arguments}
    with pytest.raises(error, match=message):
        AudioTokenizer(**{**arguments, "model": places.get(arguments["model"], arguments["model"])})


def test_other_mistakes(tokenizer, checkpoint, model):
    with pytest.raises(ValueError, match=r"no column 'audio', but 'sound'\. Give audio_column"):
        tokenizer({"sound": [b""]})
    with pytest.raises(TypeError, match="rank="):
        tokenizer({"audio": [make_wav(100)]}, [0])
    with pytest.raises(ValueError, match="dtype and device cannot be given with a MimiModel"):
        AudioTokenizer(model, dtype="bfloat16", device="cpu")
    detokenizer = AudioDetokenizer(checkpoint)
    for codes, message in (
        ([[[0, 64]]], "Codes of example 0: .*entries 0 to 63"),
        ([[[0]], [[0.5]]], "Codes of example 1: it is float64"),
        ([[[0, 1], [2]]], "Codes of example 0"),
        ([[[0]] * 7], "Codes of example 0"),
    ):
        with pytest.raises(ValueError, match=message):
            detokenizer({"audio_codes": codes})
    with pytest.raises(TypeError, match="sampling_rate='16000'"):
        AudioTokenizer(checkpoint, sampling_rate="16000")
    with pytest.raises(ValueError, match="audio_format='mp3'"):
        AudioDetokenizer(checkpoint, audio_format="mp3")


# And back


@pytest.mark.parametrize("batched", [{"batched": True, "batch_size": 4}, {}])
@pytest.mark.parametrize("audio_format", ["flac", "wav", "array"])
def test_back_to_audio(checkpoint, model, tokenizer, expected, batched, audio_format, tmp_path):
    tokenized = make_dataset().map(tokenizer, batched=True)
    detokenizer = AudioDetokenizer(checkpoint, audio_column="back", audio_format=audio_format)
    back = tokenized.map(detokenizer, **batched)
    assert back.features == detokenizer.output_features(tokenized.features)
    back.to_parquet(tmp_path / "data.parquet")
    for row, codes, samples in zip(back, expected, LENGTHS, strict=True):
        with torch.no_grad():
            audio = model.decode(torch.tensor(codes, dtype=torch.int64)[None]).audio_values[0, 0, :samples].numpy()
        found, rate = row["back"].get("array"), row["back"].get("sampling_rate")
        if audio_format != "array":
            found, rate = soundfile.read(io.BytesIO(row["back"]["bytes"]), dtype="float32")
            audio = audio.clip(-1, 1)
        assert rate == RATE
        assert len(found) == samples
        atol = 1e-5 * np.abs(audio).max() if audio_format == "array" else 2 / 2**15
        np.testing.assert_allclose(found, audio, atol=atol)
    if audio_format != "array":
        playable = back.cast_column("back", datasets.Audio(decode=False))
        assert playable[0]["back"]["bytes"] == back[0]["back"]["bytes"]


def test_codes_of_several_numbers_of_codebooks_and_without_lengths(checkpoint, model):
    codes = [
        torch.randint(0, 64, (k, frames), generator=torch.Generator().manual_seed(k))
        for k, frames in ((2, 5), (4, 3), (2, 7))
    ]
    batch = AudioDetokenizer(checkpoint, audio_format="array")({"audio_codes": [c.tolist() for c in codes]})
    for example, audio in zip(codes, batch["audio"], strict=True):
        with torch.no_grad():
            alone = model.decode(example[None]).audio_values[0, 0].numpy()
        assert audio["array"].shape == (example.shape[1] * FRAME,)
        np.testing.assert_allclose(audio["array"], alone, atol=1e-5 * np.abs(alone).max())


def test_half_precision(checkpoint):
    tokenizer = AudioTokenizer(checkpoint, dtype="bfloat16")
    row = tokenizer({"audio": {"array": make_audio(240)[0, 0].numpy(), "sampling_rate": RATE}})
    assert row["audio_codes"].shape == (6, 10)
    assert (
        AudioDetokenizer(checkpoint, dtype="bfloat16", audio_format="array")(row)["audio"]["array"].dtype == np.float32
    )
