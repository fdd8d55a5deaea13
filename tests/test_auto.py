import json
import subprocess
import sys

import pytest
import torch
from support.composites import COMPOSITES, CSM_TEXT, make_csm
from support.tiny import TINY, assert_same_audio, make_audio, make_model, randomize
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization
from transformers.models.mimi import modeling_mimi as native

import mimi_hf


@pytest.fixture(autouse=True)
def registered():
    yield
    mimi_hf.register()


def test_auto_classes_serve_a_local_folder(checkpoint):
    mimi_hf.register()  # once more changes nothing
    assert type(AutoConfig.from_pretrained(checkpoint)) is mimi_hf.MimiConfig
    for auto_class in (AutoModel, AutoModelForAudioTokenization):
        model = auto_class.from_pretrained(checkpoint)
        assert type(model) is mimi_hf.MimiModel
        assert torch.equal(model.encode(make_audio(50)).audio_codes, make_model().encode(make_audio(50)).audio_codes)
    assert type(AutoFeatureExtractor.from_pretrained(checkpoint)) is mimi_hf.MimiFeatureExtractor
    assert type(AutoModel.from_config(mimi_hf.MimiConfig(**TINY))) is mimi_hf.MimiModel


def test_unregister_restores_native(checkpoint):
    mimi_hf.unregister()
    assert type(AutoModel.from_pretrained(checkpoint)) is native.MimiModel
    assert type(AutoConfig.from_pretrained(checkpoint)) is native.MimiConfig
    mimi_hf.register()
    assert type(AutoModel.from_pretrained(checkpoint)) is mimi_hf.MimiModel


def run_python(code, **environment):
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HUB_OFFLINE": "1", **environment},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_importing_is_light_and_registers_whatever_comes_first():
    heavy = run_python(
        "import sys, transformers; before = set(sys.modules); import mimi_hf;"
        "print(*(m for m in set(sys.modules) - before if m.split('.')[0] not in ('mimi_hf', 'wrapt')))"
    )
    new = [name for name in heavy.split() if name not in sys.stdlib_module_names]
    assert not new
    for imports in (
        "import mimi_hf; import transformers",
        "import transformers; transformers.AutoModel; import mimi_hf",
    ):
        kinds = run_python(
            f"{imports}; print(type(transformers.AutoConfig.for_model('mimi')).__module__,"
            " transformers.AutoModel.from_config(transformers.AutoConfig.for_model('mimi', num_hidden_layers=1,"
            " num_filters=4)).__class__.__module__, transformers.MimiModel.__module__)"
        )
        assert kinds.split() == [
            "mimi_hf.configuration_mimi",
            "mimi_hf.modeling_mimi",
            "transformers.models.mimi.modeling_mimi",
        ]


@pytest.fixture
def hub_cache(tmp_path):
    """A cache of the Hub as it is after `kyutai/mimi` was fetched: native's config, EnCodec's feature extractor."""
    commit = "4" * 40
    repository = tmp_path / "hub" / "models--kyutai--mimi"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    config = native.MimiConfig(**{**TINY, "upsampling_ratios": [8, 6, 5, 4]})
    torch.manual_seed(0)
    randomize(native.MimiModel(config)).save_pretrained(folder)
    # As the config was published in 2024.
    published = json.loads((folder / "config.json").read_text())
    del published["rope_parameters"]
    published |= {"frame_rate": 12.5, "rope_theta": 10000.0, "normalize": False, "torch_dtype": "float32"}
    published |= {"transformers_version": "4.45.0.dev0", "_name_or_path": "kyutai/mimi"}
    (folder / "config.json").write_text(json.dumps(published))
    preprocessor = {
        "chunk_length_s": None,
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": 1,
        "overlap": None,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 24000,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return tmp_path


def test_the_published_snippet_runs_from_the_hub_cache(hub_cache):
    run_python(
        """
import numpy as np
import torch
audio_sample = np.sin(np.arange(30000) / 40)

# The snippet of the published card, from the models on: its data set needs the network.
from mimi_hf import MimiModel
from transformers import AutoFeatureExtractor

# load model and feature extractor
model = MimiModel.from_pretrained("kyutai/mimi")
feature_extractor = AutoFeatureExtractor.from_pretrained("kyutai/mimi")
inputs = feature_extractor(raw_audio=audio_sample, sampling_rate=feature_extractor.sampling_rate, return_tensors="pt")
encoder_outputs = model.encode(inputs["input_values"], inputs["padding_mask"])
audio_values = model.decode(encoder_outputs.audio_codes, inputs["padding_mask"])[0]
# or the equivalent with a forward pass
again = model(inputs["input_values"], inputs["padding_mask"]).audio_values

import mimi_hf
from transformers import AutoModel
assert torch.equal(audio_values, again) and audio_values.shape == (1, 1, 30000)
assert model.config.normalize is False and model.config.frame_rate == 12.5
assert type(AutoModel.from_pretrained("kyutai/mimi")) is MimiModel
assert type(mimi_hf.MimiFeatureExtractor.from_pretrained("kyutai/mimi")).__name__ == "MimiFeatureExtractor"
""",
        HF_HOME=str(hub_cache),
    )


@pytest.mark.parametrize("make", COMPOSITES.values(), ids=COMPOSITES)
def test_models_that_embed_mimi_give_what_they_give_with_native(make, tmp_path):
    mimi_hf.unregister()
    model_class, config, call = make()
    torch.manual_seed(0)
    model = randomize(model_class(config))
    model.save_pretrained(tmp_path / "native")
    with torch.no_grad():
        expected = call(model)
    mimi_hf.register()
    ours, info = model_class.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert any(type(part) is mimi_hf.MimiModel for part in ours.modules())
    with torch.no_grad():
        torch.testing.assert_close(call(ours), expected)
    ours.save_pretrained(tmp_path / "ours")
    mimi_hf.unregister()
    back = model_class.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(call(back), expected)


def test_csm_generates_in_half_precision(tmp_path):
    # Its own `codebooks_head` must not stay in single precision for our codebooks' sake.
    model_class, config, _ = make_csm()
    model_class(config).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    state = model.state_dict()
    singles = {name for name, tensor in state.items() if tensor.dtype == torch.float32}
    assert singles and singles == {name for name in state if ".codebook." in name}
    assert model.generate(CSM_TEXT, max_new_tokens=2, do_sample=False).shape[-1] == 8


def test_native_loads_what_we_save_and_the_reverse(tmp_path):
    ours = make_model(upsampling_ratios=[8, 6, 5, 4])
    ours.save_pretrained(tmp_path / "ours")
    theirs, info = native.MimiModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs.save_pretrained(tmp_path / "theirs")
    again, info = mimi_hf.MimiModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    audio = make_audio(4 * 1920)
    codes = ours.encode(audio).audio_codes
    with torch.no_grad():
        assert torch.equal(theirs.encode(audio).audio_codes, codes)
        assert_same_audio(ours.decode(codes).audio_values, theirs.decode(codes).audio_values)
    assert torch.equal(again.encode(audio).audio_codes, codes)


def test_public_names():
    assert set(mimi_hf.__all__) <= set(dir(mimi_hf))
    for name in mimi_hf.__all__:
        assert getattr(mimi_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = mimi_hf.Nothing
