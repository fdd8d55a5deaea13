"""The discriminator: what it sees, that it learns, and that it is saved as any model."""

import pytest
import torch
from support.tiny import make_audio

from mimi_hf.codec.losses import feature_matching_loss, hinge_discriminator_loss, hinge_generator_loss
from mimi_hf.training.objective.discriminator import MimiDiscriminator, MimiDiscriminatorConfig, WeightNormConv2d

TINY = {"filters": 4, "windows": [128, 64], "kernel_size": [3, 5], "dilations": [1, 2]}


def make_discriminator(**changes):
    torch.manual_seed(0)
    return MimiDiscriminator(MimiDiscriminatorConfig(**{**TINY, **changes}))


@pytest.fixture
def discriminator():
    return make_discriminator()


def test_shapes_are_those_of_the_spectrograms(discriminator):
    output = discriminator(make_audio(960, batch=3))
    for window, logits, features in zip(TINY["windows"], output.logits, output.features, strict=True):
        frames, bins = 1 + 960 // (window // 4), window // 2 + 1
        widths = [bins, -(-bins // 2), -(-bins // 4), -(-bins // 4)]
        assert [tuple(layer.shape) for layer in features] == [(3, 4, frames, width) for width in widths]
        assert logits.shape == (3, 1, frames, widths[-1])
    assert discriminator(make_audio(960), return_dict=False)[0][0].shape[0] == 1


def test_the_defaults_are_encodecs():
    discriminator = MimiDiscriminator(MimiDiscriminatorConfig())
    assert [scale.window for scale in discriminator.scales] == [2048, 1024, 512, 256, 128]
    layers = discriminator.scales[0].layers
    assert [tuple(layer.direction.shape) for layer in layers] == [(32, 2, 3, 9), *[(32, 32, 3, 9)] * 3, (32, 32, 3, 3)]
    assert [layer.dilation for layer in layers] == [(1, 1), (1, 1), (2, 1), (4, 1), (1, 1)]
    assert [layer.stride for layer in layers] == [(1, 1), (1, 2), (1, 2), (1, 2), (1, 1)]


def test_the_convolution_is_torchs_weight_norm():
    ours = WeightNormConv2d(3, 5, (3, 7), stride=2, dilation=2)
    theirs = torch.nn.Conv2d(3, 5, (3, 7), stride=(1, 2), dilation=(2, 1), padding=(2, 3))
    theirs = torch.nn.utils.parametrizations.weight_norm(theirs)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    weights = theirs.parametrizations.weight
    weights.original0.data = ours.gain.data[:, None, None, None]
    weights.original1.data, theirs.bias.data = ours.direction.data, ours.bias.data
    x = torch.randn(2, 3, 9, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_layers_begin_with_the_variance_of_their_input():
    features = make_discriminator(filters=32)(0.1 * torch.randn(2, 1, 9600)).features[0]
    levels = [layer.square().mean().sqrt().item() for layer in features]
    assert all(0.3 < level / 0.1 < 3 for level in levels)


@pytest.mark.parametrize("compression", [1, 0.5, 0.3])
def test_compression_is_an_exponent_of_the_level(compression):
    discriminator = make_discriminator(compression=compression)
    audio = 100 * make_audio(960)  # far above the floor
    louder = discriminator(16 * audio).features[0][0]
    torch.testing.assert_close(louder, 16**compression * discriminator(audio).features[0][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compression", [1, 0.3])
def test_phase_is_seen(compression):
    discriminator, audio = make_discriminator(compression=compression), make_audio(960)
    assert (discriminator(audio).logits[0] - discriminator(-audio).logits[0]).abs().max() > 1e-3


def test_it_is_saved_and_loaded_whole(discriminator, tmp_path):
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.add_(torch.randn(parameter.shape))
    discriminator.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded, report = MimiDiscriminator.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name in (*TINY, "sampling_rate", "audio_channels", "stride", "negative_slope", "compression"):
        assert getattr(loaded.config, name) == getattr(discriminator.config, name)
    audio = make_audio(960)
    for ours, theirs in zip(discriminator(audio).logits, loaded(audio).logits, strict=True):
        assert torch.equal(ours, theirs)


def test_another_model_is_not_loaded_as_a_discriminator(checkpoint):
    with pytest.raises(ValueError, match="type 'mimi', but 'mimi_discriminator'"):
        MimiDiscriminator.from_pretrained(checkpoint)


def test_it_learns_to_tell_and_the_codec_to_deceive(discriminator):
    real, fake = make_audio(1920, batch=4), 0.1 * torch.randn(4, 1, 1920)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    for _ in range(80):
        loss = hinge_discriminator_loss(discriminator(real).logits, discriminator(fake).logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.7  # 2 at the beginning
    discriminator.requires_grad_(False)
    fake.requires_grad_()
    before = hinge_generator_loss(discriminator(fake).logits)
    target = discriminator(real)
    output = discriminator(fake)
    total = hinge_generator_loss(output.logits) + feature_matching_loss(target.features, output.features)
    total.backward()
    deceiving = discriminator(fake - 2.0 * fake.grad / fake.grad.norm())
    assert hinge_generator_loss(deceiving.logits) < before


def test_autocast_spares_the_spectrogram(discriminator):
    audio = make_audio(1920)
    exact = discriminator(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = discriminator(audio)
    assert rough.logits[0].dtype == torch.bfloat16
    assert (rough.logits[0] - exact.logits[0]).abs().max() < 0.05 * exact.logits[0].abs().max()
    assert discriminator(audio.bfloat16()).logits[0].dtype == torch.float32
    assert discriminator.bfloat16()(audio).logits[0].dtype == torch.bfloat16


@pytest.mark.parametrize("compression", [1, 0.3])
def test_stereo_and_silence(compression):
    discriminator = make_discriminator(audio_channels=2, compression=compression)
    audio = torch.zeros(1, 2, 10, requires_grad=True)  # shorter than any window
    sum(logits.sum() for logits in discriminator(audio).logits).backward()
    assert torch.isfinite(audio.grad).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": [66]},
        {"windows": []},
        {"windows": 64},
        {"filters": 0},
        {"kernel_size": [3, 4]},
        {"kernel_size": [3]},
        {"dilations": [0]},
        {"stride": 1.5},
        {"compression": 0},
        {"compression": 2},
        {"compression": "0.3"},
    ],
)
def test_sizes_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        make_discriminator(**changes)


def test_audio_of_another_shape_is_refused(discriminator):
    for bad in (make_audio(960, channels=2), make_audio(960)[0], make_audio(960)[..., :0]):
        with pytest.raises(ValueError, match="audio has shape"):
            discriminator(bad)
