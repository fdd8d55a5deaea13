"""Adapters of peft: on every layer that peft adapts, and what becomes of the codebooks under them."""

import copy
import warnings

import pytest
import torch
from support.tiny import FRAME, assert_same_audio, make_audio, make_model
from support.trainee import PLAIN, make_trainee

from mimi_hf import MimiModel, QuantizerTraining

peft = pytest.importorskip("peft", minversion="0.18", reason="needs peft with Conv1d: pip install 'peft>=0.18'")

# One target a time, as wide as peft allows: it adapts no transposed convolution.
TARGETS = {
    "first convolution": r"encoder\.layers\.0\.conv",
    "strided convolution": r"encoder\.layers\.3\.conv",
    "residual block": r"encoder\.layers\.1\.block\.[13]\.conv",
    "downsampling": r"downsample\.conv",
    "projection to the codebooks": r"quantizer\..*\.input_proj",
    "projection from the codebooks": r"quantizer\..*\.output_proj",
    "last convolution": r"decoder\.layers\.11\.conv",
    "transformer": r".*_transformer\..*(q_proj|fc1)",
}
ALL = "|".join(TARGETS.values())
KINDS = {
    "lora": lambda targets: peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False),
    "dora": lambda targets: peft.LoraConfig(r=4, use_dora=True, target_modules=targets, init_lora_weights=False),
    "loha": lambda targets: peft.LoHaConfig(r=4, target_modules=targets, init_weights=False),
    "lokr": lambda targets: peft.LoKrConfig(r=4, target_modules=targets, init_weights=False),
}


def adapt(model, config):
    torch.manual_seed(0)
    return peft.get_peft_model(model, config)


def run(model):
    """Codes and audio, offline in a batch of two, and the audio of fixed codes."""
    audio = make_audio(20 * FRAME, batch=2)
    codes = torch.randint(64, (2, 6, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.encode_latents(audio), model.encode(audio).audio_codes, model.decode(codes).audio_values


def run_live(model):
    audio = make_audio(20 * FRAME, batch=2)
    codes = torch.randint(64, (2, 6, 20), generator=torch.Generator().manual_seed(0))
    encoder, decoder = model.encoder_stream(2), model.decoder_stream(2)
    streamed = torch.cat([encoder.push(chunk) for chunk in audio.split(3 * FRAME, dim=2)], dim=2)
    return streamed, torch.cat([decoder.push(part) for part in codes.split(1, dim=2)], dim=2)


@pytest.mark.parametrize("target", TARGETS)
def test_an_adapter_works_on_each_layer_as_when_it_is_merged(target):
    base = run(make_model())
    model = make_model()
    adapted = adapt(model, KINDS["lora"](TARGETS[target])).eval()
    latents, codes, audio = run(model)
    assert not torch.equal(codes, base[1]) or not torch.allclose(audio, base[2], rtol=1e-3)
    streamed, live = run_live(model)
    assert torch.equal(streamed, codes)
    assert_same_audio(live, audio)
    with adapted.disable_adapter():
        for actual, expected in zip(run(model), base, strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    merged = run(copy.deepcopy(adapted).merge_and_unload())
    assert (merged[0] - latents).abs().max() <= 1e-5 * latents.abs().max()
    assert torch.equal(merged[1], codes)
    assert_same_audio(merged[2], audio)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_adapter_on_all_layers_at_once(kind):
    model = make_model()
    run(model)  # weights lie as the products like them
    adapted = adapt(model, KINDS[kind](ALL)).eval()
    latents, codes, audio = run(model)
    assert not torch.equal(codes, run(make_model())[1])
    streamed, live = run_live(model)
    assert torch.equal(streamed, codes)
    assert_same_audio(live, audio)
    adapted.merge_adapter()
    assert torch.equal(run(model)[1], codes)
    adapted.unmerge_adapter()
    whole = adapted.merge_and_unload()
    assert type(whole.encoder.layers[0].conv) is torch.nn.Conv1d
    assert (run(whole)[0] - latents).abs().max() <= 1e-5 * latents.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_flow_into_every_adapter(dtype):
    model = make_model().to(dtype).train()
    adapted = adapt(model, KINDS["lora"](ALL))
    adapted(input_values=make_audio(10 * FRAME, batch=2)).loss.backward()
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert not parameter.requires_grad or (parameter.grad.isfinite().all() and parameter.grad.any()), name


def test_an_adapter_may_hold_whole_convolutions_transposed_ones_too():
    model = make_model()
    adapted = adapt(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["conv", "input_proj"])).eval()
    before = run(model)
    latents, _, audio = before
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            parameter.data.mul_(1.1)
    changed = run(model)
    assert not torch.allclose(changed[0], latents) and not torch.allclose(changed[2], audio)
    assert_same_audio(run_live(model)[1], changed[2])
    with adapted.disable_adapter():
        assert torch.equal(run(model)[1], before[1])
    merged = run(adapted.merge_and_unload())
    assert (merged[0] - changed[0]).abs().max() <= 1e-5 * changed[0].abs().max()
    assert_same_audio(merged[2], changed[2])


def test_adapters_that_leave_out_the_dilation_are_refused():
    model = make_model(num_residual_layers=2)  # the second one has dilation 2
    adapt(model, KINDS["lora"](r"encoder\..*\.block\.1\.conv"))
    for call in (lambda: model.encode(make_audio(2 * FRAME)), lambda: model.encoder_stream().push(make_audio(FRAME))):
        with pytest.raises(ValueError, match=r"dilation 2 convolves with dilation 1.*Leave this layer out"):
            call()


def test_adapters_are_compiled_with_their_layers():
    model = make_model()
    adapt(model, KINDS["lora"](ALL)).eval()
    model.prepare()

    def layers(x):
        x, state = model.downsample(x, None)
        return model.quantizer.semantic_residual_vector_quantizer.search(x, 1), x, state

    x = torch.randn(2, 12, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layers, fullgraph=True, backend="eager")(x), layers(x))


# Codebooks under adapters


def train(adapted, steps=3, rate=0.0):
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, rate)
    for step in range(steps):
        adapted.train()(input_values=make_audio(20 * FRAME, batch=2, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()


def codes_of(model):
    return model.encode(make_audio(20 * FRAME, batch=2)).audio_codes


@pytest.mark.parametrize("target", ["transformer", "projection to the codebooks"])
def test_an_adapter_that_learnt_nothing_gives_every_code_again(checkpoint, tmp_path, target):
    model = MimiModel.from_pretrained(checkpoint)
    codes, digest = codes_of(model), model.codebook_digest
    adapted = adapt(model, peft.LoraConfig(r=2, target_modules=TARGETS[target]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The codebooks learn")
        train(adapted).save_pretrained(tmp_path)
    assert model.codebook_digest == digest
    loaded = peft.PeftModel.from_pretrained(MimiModel.from_pretrained(checkpoint), tmp_path).eval()
    for again in (model, loaded.get_base_model(), loaded.merge_and_unload()):
        assert torch.equal(codes_of(again), codes)


def test_codebooks_that_learn_are_saved_with_the_adapter_where_it_holds_them(checkpoint, tmp_path):
    model = MimiModel.from_pretrained(checkpoint)
    before = codes_of(model)
    model.quantizer.training_options = QuantizerTraining(**PLAIN, decay=0.5, update=True)
    config = peft.LoraConfig(r=2, target_modules=TARGETS["transformer"], modules_to_save=["codebook"])
    adapted = adapt(model, config)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The codebooks learn")
        train(adapted).save_pretrained(tmp_path)
    codes = codes_of(model)
    assert not torch.equal(codes, before)
    loaded = peft.PeftModel.from_pretrained(MimiModel.from_pretrained(checkpoint), tmp_path).eval()
    assert torch.equal(codes_of(loaded.get_base_model()), codes)
    with loaded.disable_adapter():
        assert torch.equal(codes_of(loaded.get_base_model()), before)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert torch.equal(codes_of(MimiModel.from_pretrained(tmp_path / "merged")), codes)


@pytest.mark.parametrize("way", ["peft", "transformers"])
def test_codebooks_that_an_adapter_file_leaves_out_are_told_of(tmp_path, way):
    model = make_trainee(update=True)
    config = peft.LoraConfig(r=2, target_modules=TARGETS["transformer"])
    if way == "peft":
        adapted = adapt(model, config)
    else:
        try:
            model.add_adapter(config)
        except ValueError as error:
            if "version of PEFT" not in str(error):
                raise
            pytest.skip(str(error))
        adapted = model
    with pytest.warns(UserWarning, match=r"holds no codebooks.*modules_to_save=\['codebook'\].*update=False"):
        train(adapted, steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The codebooks learn")
        train(adapted, steps=1)  # once is enough
    with pytest.warns(UserWarning, match="holds no codebooks"):
        adapted.save_pretrained(tmp_path / "adapter")
    if way == "peft":
        codes = codes_of(model)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The codebooks learn")
            adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
        assert torch.equal(codes_of(MimiModel.from_pretrained(tmp_path / "merged")), codes)
