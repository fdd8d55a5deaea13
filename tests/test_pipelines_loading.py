"""Pipelines: loading and saving, models that they refuse, and their registration with transformers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from support.tiny import TINY, make_audio, make_model, randomize
from transformers import pipeline
from transformers.models.mimi import modeling_mimi as native
from transformers.pipelines import PIPELINE_REGISTRY

import mimi_hf


@pytest.fixture(autouse=True)
def registered():
    yield
    mimi_hf.register()


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "speech", "text"]))
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_feature_extraction_is_as_before_for_other_models(text_model, tmp_path):
    ours = pipeline("feature-extraction", model=str(text_model))
    mimi_hf.unregister()
    before = pipeline("feature-extraction", model=str(text_model))
    assert type(ours) is type(before) is transformers.FeatureExtractionPipeline
    assert ours(["speech text", "text"], batch_size=2) == before(["speech text", "text"], batch_size=2)

    before.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    reasons = []
    for switch in (mimi_hf.unregister, mimi_hf.register):
        switch()
        with pytest.raises(Exception, match=r"\w") as raised:
            pipeline("feature-extraction", model=str(tmp_path))
        reasons.append((raised.type, str(raised.value)))
    assert reasons[0] == reasons[1]
    with pytest.raises(ValueError, match="Pass tokenizer="):
        pipeline("feature-extraction", model=before.model)


# Loading


@pytest.mark.parametrize("task", ["audio-tokenization", "audio-detokenization", "feature-extraction"])
def test_a_folder_is_loaded_and_saved(task, checkpoint, tmp_path):
    loaded = pipeline(task, model=str(checkpoint), dtype=torch.bfloat16, device="cpu", local_files_only=True)
    assert type(loaded.model) is mimi_hf.MimiModel
    assert loaded.dtype == torch.bfloat16
    assert type(loaded.feature_extractor) is mimi_hf.MimiFeatureExtractor
    example = np.zeros((2, 9), dtype=np.int64) if task == "audio-detokenization" else np.zeros(200)
    result = loaded(example)
    loaded.save_pretrained(tmp_path)
    again = pipeline(task, model=str(tmp_path))
    assert again.dtype == torch.bfloat16
    assert repr(again(example)) == repr(result)


def test_the_feature_extractor_fits_the_model(model):
    stereo = make_model(audio_channels=2)
    audio = make_audio(100, channels=2)
    tokenize = pipeline("audio-tokenization", model=stereo)
    np.testing.assert_array_equal(tokenize(audio[0])["audio_codes"], stereo.encode(audio).audio_codes[0])
    streaming = make_model(use_streaming=True, return_dict=False)  # whole recordings all the same
    whole = pipeline("audio-tokenization", model=streaming)(audio[0])["audio_codes"]
    np.testing.assert_array_equal(whole, pipeline("audio-tokenization", model=model)(audio[0])["audio_codes"])
    own = mimi_hf.MimiFeatureExtractor(padding_side="left")
    assert pipeline("audio-tokenization", model=model, feature_extractor=own).feature_extractor is own
    encodec = pipeline("audio-tokenization", model=model, feature_extractor=transformers.EncodecFeatureExtractor())
    assert type(encodec.feature_extractor) is mimi_hf.MimiFeatureExtractor
    with pytest.raises(ValueError, match=r"'feature_size': 1.*needs.*'feature_size': 2"):
        pipeline("audio-tokenization", model=stereo, feature_extractor=own)


def test_models_that_cannot_do_it_are_refused():
    with pytest.raises(TypeError, match=r"transformers\.models\.mimi.*import mimi_hf"):
        pipeline("audio-tokenization", model=native.MimiModel(native.MimiConfig(**TINY)))
    with pytest.raises(ValueError, match="without its decoder"):
        pipeline("audio-detokenization", model=make_model(decoder_config=None))


# Registration


def run_python(code, **environment):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_tasks_are_registered_when_pipelines_are_imported():
    run_python(
        """
import sys
import mimi_hf
assert "transformers.pipelines" not in sys.modules
import transformers.pipelines
assert "mimi_hf.pipelines" not in sys.modules and "mimi_hf.modeling_mimi" not in sys.modules
tasks = transformers.pipelines.PIPELINE_REGISTRY.supported_tasks
impl = tasks["audio-tokenization"]["impl"]
assert impl.__name__ == "AudioTokenizationPipeline" and impl._load_tokenizer is False
"""
    )


def test_unregister_restores_the_tasks():
    ours = dict(PIPELINE_REGISTRY.supported_tasks)
    mimi_hf.register()  # once more changes nothing
    assert all(PIPELINE_REGISTRY.supported_tasks[task] is ours[task] for task in ours)
    mimi_hf.unregister()
    assert set(ours) - set(PIPELINE_REGISTRY.supported_tasks) == {"audio-tokenization", "audio-detokenization"}
    mine = PIPELINE_REGISTRY.supported_tasks["audio-tokenization"] = {"impl": "of another"}
    mimi_hf.register()
    assert PIPELINE_REGISTRY.supported_tasks["audio-tokenization"] is not mine
    mimi_hf.unregister()
    assert PIPELINE_REGISTRY.supported_tasks.pop("audio-tokenization") is mine


def test_the_id_on_the_hub_loads_offline(tmp_path):
    commit = "4" * 40
    repository = tmp_path / "hub" / "models--kyutai--mimi"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    config = {**TINY, "upsampling_ratios": [8, 6, 5, 4]}
    randomize(native.MimiModel(native.MimiConfig(**config))).save_pretrained(folder)
    preprocessor = {"feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "sampling_rate": 24_000}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    run_python(
        """
import numpy as np, torch
from transformers import pipeline
import mimi_hf  # after the pipelines
tokenize = pipeline("audio-tokenization", model="kyutai/mimi")
detokenize = pipeline("audio-detokenization")  # the default model
item = tokenize({"array": np.sin(np.arange(20_000) / 9), "sampling_rate": 16_000})
assert item["audio_codes"].shape == (6, 16) and item["num_samples"] == 30_000
assert detokenize(item)["audio"].shape == (1, 30_000)
assert pipeline("feature-extraction", model="kyutai/mimi")(np.zeros(3840), return_tensors=True).shape == (1, 2, 32)
""",
        HF_HOME=str(tmp_path),
    )
