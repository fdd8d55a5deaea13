"""Losses, compared with torch's own transforms and with their formulas in plain numpy."""

import math

import numpy as np
import pytest
import torch
from support.tiny import make_audio
from torch.nn import functional as F

from mimi_hf.codec.losses import (
    FLOOR,
    MELS,
    RECONSTRUCTION_WEIGHTS,
    WINDOWS,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    mel_filters,
    mel_loss,
    reconstruction_loss,
    reconstruction_losses,
    stft,
    stft_loss,
    waveform_loss,
)
from mimi_hf.training.objective.balancer import GradientBalancer

RATE = 24_000


@pytest.fixture
def pair():
    return make_audio(3000, batch=2), make_audio(3000, batch=2, seed=1)


def numpy_magnitudes(audio, window):
    """|STFT| of one channel, frame by frame: (frames, bins)."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(audio, window // 2)
    frames = [padded[i : i + window] for i in range(0, len(padded) - window + 1, window // 4)]
    return np.abs(np.fft.rfft(np.array(frames) * hann)) / np.sqrt((hann**2).sum())


# Spectra


@pytest.mark.parametrize("window", [64, 512])
def test_stft_is_that_of_torch(window):
    audio = make_audio(3000)[0]
    expected = torch.stft(
        audio, window, window // 4, window=torch.hann_window(window), pad_mode="constant", return_complex=True
    )
    expected = expected.mT / torch.hann_window(window).square().sum().sqrt()
    torch.testing.assert_close(stft(audio, window), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
def test_white_noise_has_its_level_at_every_resolution(window):
    noise = 0.1 * torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    inner = stft(noise, window)[:, 4:-4, 2:-2].abs()
    assert inner.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize(("window", "mels"), [*zip(WINDOWS, MELS, strict=True), (64, 80)])
def test_mel_filters_average_cover_and_rise(window, mels):
    filters = mel_filters(RATE, window, mels)
    assert filters.shape == (window // 2 + 1, mels)
    torch.testing.assert_close(filters.sum(dim=0), torch.ones(mels))
    assert (filters[1:-1].sum(dim=1) > 0).all()
    centres = (filters * torch.arange(len(filters))[:, None]).sum(dim=0)
    assert (centres.diff() >= -1e-4).all()


def test_mel_bands_follow_slaneys_scale():
    # 200/3 Hz a mel to 1 kHz = 15 mels, 27 more to 6.4 kHz: with 41 bands to 6.4 kHz, one band a mel.
    peaks = mel_filters(12_800, 6400, 41).argmax(dim=0) * 2.0
    expected = [200 / 3 * mel if mel <= 15 else 1000 * 6.4 ** ((mel - 15) / 27) for mel in range(1, 42)]
    np.testing.assert_allclose(peaks, expected, atol=1.01)


def test_bands_narrower_than_a_bin_lie_where_they_should():
    # 10 Hz bands among bins of 375 Hz: they share the two bins on their sides by distance.
    filters = mel_filters(RATE, 64, 2000)
    middles = (filters * torch.arange(33)[:, None]).sum(dim=0)[40:200] * 375
    step = 200 / 3 * (15 + 27 * math.log(12) / math.log(6.4)) / 2001
    torch.testing.assert_close(middles, step * torch.arange(41, 201), rtol=1e-3, atol=0.1)


# Reconstruction


def test_losses_follow_their_formulas(pair):
    window, bands = 256, 40
    targets, estimates = (
        np.stack([numpy_magnitudes(row[0], window) for row in item.double().numpy()]) for item in pair
    )
    filters = mel_filters(RATE, window, bands).double().numpy()
    log = lambda x: np.log(x + FLOOR)  # noqa: E731
    expected = {
        "mel": np.abs(log(targets @ filters) - log(estimates @ filters)).mean(),
        "spectral_convergence": np.linalg.norm(targets - estimates) / np.linalg.norm(targets),
        "log_magnitude": np.abs(log(targets) - log(estimates)).mean(),
        "waveform": (pair[0] - pair[1]).abs().mean(),
    }
    losses = reconstruction_losses(*pair, RATE, windows=[window], mels=[bands])
    assert set(losses) == set(expected) == set(RECONSTRUCTION_WEIGHTS)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(float(value), rel=1e-4), name


def test_shared_and_single_losses_agree(pair):
    losses = reconstruction_losses(*pair, RATE)
    convergence, magnitude = stft_loss(*pair)
    single = {"mel": mel_loss(*pair, RATE), "spectral_convergence": convergence, "log_magnitude": magnitude}
    single["waveform"] = waveform_loss(*pair)
    for name, loss in single.items():
        assert loss.item() == pytest.approx(losses[name].item(), rel=1e-6)
    total = sum(RECONSTRUCTION_WEIGHTS[name] * loss for name, loss in single.items())
    assert reconstruction_loss(*pair, RATE).item() == pytest.approx(total.item(), rel=1e-6)
    assert reconstruction_loss(*pair, RATE, {"mel": 2.0}).item() == pytest.approx(2 * single["mel"].item(), rel=1e-6)


def test_a_loss_is_the_mean_of_its_resolutions(pair):
    parts = [mel_loss(*pair, RATE, [window], [16]) for window in (512, 128)]
    assert mel_loss(*pair, RATE, [512, 128], [16, 16]).item() == pytest.approx(sum(parts).item() / 2, rel=1e-6)


def test_equal_audio_costs_nothing_and_closer_audio_less(pair):
    target, other = pair
    assert all(loss == 0 for loss in reconstruction_losses(target, target.clone(), RATE).values())
    near, far = (reconstruction_losses(target, target + share * other, RATE) for share in (0.01, 0.3))
    assert all(0 < near[name] < far[name] for name in near)


def test_gradients_are_those_of_torchs_own_transform(pair):
    target, estimate = pair

    def plain(estimate):
        total = 0.0
        for window, bands in zip((512, 64), (40, 10), strict=True):
            a, b = (stft(item, window).abs() for item in (target, estimate))
            filters = mel_filters(RATE, window, bands)
            total = total + 0.5 * F.l1_loss((b @ filters + FLOOR).log(), (a @ filters + FLOOR).log())
            total = total + 0.2 * (b - a).norm() / a.norm() + 0.15 * F.l1_loss((b + FLOOR).log(), (a + FLOOR).log())
        return total + 0.03 * F.l1_loss(estimate, target)

    ours, theirs = estimate.clone().requires_grad_(), estimate.clone().requires_grad_()
    reconstruction_loss(target, ours, RATE, windows=(512, 64), mels=(40, 10)).backward()
    plain(theirs).backward()
    assert (ours.grad - theirs.grad).norm() < 1e-3 * theirs.grad.norm()


@pytest.mark.parametrize("samples", [1, 63, 1920])
@pytest.mark.parametrize("silent", ["target", "estimate", "both"])
def test_silence_and_short_audio_have_finite_gradients(samples, silent):
    noise = make_audio(samples)
    target = noise * (silent == "estimate")
    estimate = (make_audio(samples, seed=1) * (silent == "target")).requires_grad_()
    loss = reconstruction_loss(target, estimate, RATE)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(estimate.grad).all()
    assert (loss > 0) == (silent != "both")


def test_a_silent_batch_counts_as_noise_at_the_floor():
    estimate = 0.1 * torch.randn(1, 1, 24_000, generator=torch.Generator().manual_seed(0))
    convergence, _ = stft_loss(torch.zeros_like(estimate), estimate)
    assert convergence.item() == pytest.approx(0.1 / FLOOR, rel=0.05)


def test_a_silent_row_does_not_outweigh_the_others(pair):
    target, estimate = pair
    alone = stft_loss(target, estimate)[0].item()
    target, hiss = torch.cat([target, torch.zeros(1, 1, 3000)]), make_audio(3000, seed=2)
    assert stft_loss(target, torch.cat([estimate, 0.01 * hiss]))[0].item() == pytest.approx(alone, rel=1e-2)


def test_autocast_and_other_types_change_nothing(pair):
    expected = reconstruction_loss(*pair, RATE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reconstruction_loss(*pair, RATE) == expected
        assert reconstruction_losses(target=pair[0], estimate=pair[1], sampling_rate=RATE)["mel"].dtype == torch.float32
    half = [item.bfloat16() for item in pair]
    assert mel_loss(target=half[0], estimate=half[1], sampling_rate=RATE) == mel_loss(
        half[0].float(), half[1].float(), RATE
    )


def test_filters_made_in_inference_mode_serve_training(pair):
    options = {"windows": [256], "mels": [33]}
    with torch.inference_mode():
        mel_loss(*pair, 22_050, **options)
    estimate = pair[1].clone().requires_grad_()
    mel_loss(pair[0], estimate, 22_050, **options).backward()
    assert estimate.grad.abs().sum() > 0


def test_channels_are_rows(pair):
    stereo = [item.transpose(0, 1).contiguous() for item in pair]
    assert reconstruction_loss(*stereo, RATE).item() == pytest.approx(reconstruction_loss(*pair, RATE).item(), rel=1e-6)


def test_what_cannot_be_compared_is_refused(pair):
    target, estimate = pair
    for bad in (estimate[..., :-1], estimate[:1], estimate[0]):
        with pytest.raises(ValueError, match="equal shapes"):
            reconstruction_losses(target, bad, RATE)
    with pytest.raises(ValueError, match="equal shapes"):
        waveform_loss(target[..., :0], target[..., :0])
    with pytest.raises(ValueError, match="holds 66"):
        stft_loss(target, estimate, windows=[64, 66])
    with pytest.raises(ValueError, match="each of the 2 windows"):
        mel_loss(target, estimate, RATE, [64, 128], [10])
    with pytest.raises(ValueError, match="'mell'"):
        reconstruction_loss(target, estimate, RATE, {"mell": 1.0})


# With a discriminator


def test_hinge_losses_by_hand():
    real, fake = [torch.tensor([2.0, 0.5]), torch.tensor([-1.0])], [torch.tensor([-2.0, 0.0]), torch.tensor([3.0])]
    # Scale 1: real mean(0, 0.5), fake mean(0, 1); scale 2: real 2, fake 4.
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(((0.25 + 0.5) + (2 + 4)) / 2)
    assert hinge_generator_loss(fake).item() == pytest.approx(((3 + 1) / 2 + 0) / 2)
    for bad in ([], fake[:1]):
        with pytest.raises(ValueError, match="scales"):
            hinge_discriminator_loss(real, bad)


def test_feature_matching_is_relative_to_real_features():
    generator = torch.Generator().manual_seed(0)
    real = [[torch.randn(2, 3, 4, generator=generator) for _ in range(2)] for _ in range(3)]
    fake = [[1.5 * layer for layer in scale] for scale in real]
    assert feature_matching_loss(real, fake).item() == pytest.approx(0.5, rel=1e-5)
    louder = [[1e3 * layer for layer in scale] for scale in (real[0], fake[0])]
    assert feature_matching_loss(louder[:1], louder[1:]).item() == pytest.approx(0.5, rel=1e-5)
    zero = [[torch.zeros(2, 2)]]
    assert feature_matching_loss(zero, zero) == 0


def test_feature_matching_teaches_the_fake_alone():
    real, fake = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    feature_matching_loss([[real]], [[fake]]).backward()
    assert real.grad is None and (fake.grad < 0).all()


# Balance


def gradients_of(balancer, losses, audio):
    return balancer.gradient({name: loss(audio) for name, loss in losses.items()}, audio)


def test_weights_are_shares_whatever_the_scale():
    audio = make_audio(100, batch=3).requires_grad_()
    half = torch.arange(100) < 50  # the losses pull on different samples
    losses = {"left": lambda x: 1e4 * (x * half).square().mean(), "right": lambda x: 1e-3 * (x * ~half).square().mean()}
    gradient = gradients_of(GradientBalancer({"left": 3.0, "right": 1.0}, total_norm=2.0), losses, audio)
    norms = [(gradient * part).flatten(1).norm(dim=1).sum().item() for part in (half, ~half)]
    assert norms == pytest.approx([2.0 * 3 / 4, 2.0 / 4], rel=1e-5)


def test_balance_does_not_depend_on_the_batch_size():
    audio = make_audio(100)
    losses = {"near": lambda x: x.square().mean(), "far": lambda x: (x - 1).abs().mean()}
    weights = {"near": 1.0, "far": 2.0}
    one = gradients_of(GradientBalancer(weights), losses, audio.clone().requires_grad_())
    four = gradients_of(GradientBalancer(weights), losses, audio.repeat(4, 1, 1).requires_grad_())
    torch.testing.assert_close(four.sum(dim=0, keepdim=True), one)


def test_norms_are_averaged_over_calls():
    audio = torch.ones(1, 1, 4, requires_grad=True)
    balancer = GradientBalancer({"loss": 1.0}, decay=0.5)
    scales = [1.0, 3.0, 0.0, 2.0]
    average, weight = 0.0, 0.0
    for scale in scales:
        gradient = balancer.gradient({"loss": scale * audio.sum()}, audio)
        average, weight = 0.5 * average + 0.5 * 2 * scale, 0.5 * weight + 0.5  # the norm of four equal ones is 2
        assert gradient.norm().item() == pytest.approx(2 * scale / (average / weight), rel=1e-5)


def test_a_saved_balancer_goes_on_the_same():
    audio = make_audio(100).requires_grad_()
    losses = {"near": lambda x: x.square().mean(), "far": lambda x: (x - 1).abs().mean()}
    weights = {"near": 1.0, "far": 2.0}
    balancer = GradientBalancer(weights)
    for scale in (1.0, 0.3, 5.0):
        gradients_of(balancer, losses, (scale * audio.detach()).requires_grad_())
    other = GradientBalancer(weights)
    other.load_state_dict(balancer.state_dict())
    assert torch.equal(gradients_of(balancer, losses, audio), gradients_of(other, losses, audio))
    assert balancer.state_dict() == other.state_dict()


def test_losses_may_come_in_later_and_be_zero():
    audio = make_audio(100).requires_grad_()
    balancer = GradientBalancer({"near": 1.0, "late": 1.0})
    alone = balancer.gradient({"near": audio.square().mean()}, audio)
    assert alone.norm().item() == pytest.approx(1.0, rel=1e-5)
    both = balancer.gradient({"near": audio.square().mean(), "late": 0 * audio.sum()}, audio)
    torch.testing.assert_close(both, alone / 2)


def test_backward_reaches_the_parameters_with_what_is_beside():
    weight = torch.tensor(2.0, requires_grad=True)
    output = weight * torch.ones(1, 1, 4)
    beside = 7 * weight
    gradient = GradientBalancer({"loss": 1.0}).backward({"loss": output.square().mean()}, output, beside)
    assert weight.grad.item() == pytest.approx(gradient.sum().item() + 7)
    assert gradient.norm().item() == pytest.approx(1.0)


def test_the_balancer_refuses_what_it_cannot_weigh():
    audio = make_audio(100).requires_grad_()
    balancer = GradientBalancer({"near": 1.0})
    with pytest.raises(ValueError, match="'far' has no weight"):
        balancer.gradient({"far": audio.sum()}, audio)
    with pytest.raises(ValueError, match="does not depend"):
        balancer.gradient({"near": torch.ones(2, requires_grad=True).sum()}, audio)
    with pytest.raises(ValueError, match="no loss"):
        balancer.gradient({}, audio)
    for options in ({"weights": {"near": 0.0}}, {"decay": 1.0}, {"total_norm": -1.0}, {"weights": {"near": math.nan}}):
        with pytest.raises(ValueError, match=next(iter(options))):
            GradientBalancer(**{"weights": {"near": 1.0}, **options})


def _balance_in_process(rank, file, results):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    audio = make_audio(100, batch=4)[2 * rank : 2 * rank + 2].requires_grad_()
    balancer = GradientBalancer({"near": 1.0, "far": 2.0})
    losses = {"near": audio.square().mean(), "far": (audio - 1).abs().mean()}
    torch.save((balancer.gradient(losses, audio), balancer.state_dict()), f"{results}/{rank}")
    dist.destroy_process_group()


def test_processes_balance_as_one(tmp_path):
    torch.multiprocessing.spawn(_balance_in_process, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    (first, state), (second, other) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert state == other
    audio = make_audio(100, batch=4).requires_grad_()
    balancer = GradientBalancer({"near": 1.0, "far": 2.0})
    whole = gradients_of(balancer, {"near": lambda x: x.square().mean(), "far": lambda x: (x - 1).abs().mean()}, audio)
    torch.testing.assert_close(torch.cat([first, second]) / 2, whole)  # processes average their gradients
