"""Distillation from tiny speech models, made at random and loaded as any from the Hub."""

import numpy as np
import pytest
import torch
from support.tiny import make_audio
from support.training import KINDS, save_teacher
from torch.nn import functional as F
from transformers import (
    Wav2Vec2FeatureExtractor,
)

from mimi_hf.training.objective.distillation import SemanticTeacher, distillation_loss, resample

RATE, FRAME = 24_000, 1920


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("wavlm"))


# Resampling


@pytest.mark.parametrize(("source", "target"), [(24_000, 16_000), (16_000, 24_000), (44_100, 16_000)])
def test_resampling_is_that_of_soxr(source, target):
    soxr = pytest.importorskip("soxr")
    time = np.arange(source) / source
    audio = sum(np.sin(2 * np.pi * hertz * time + hertz) for hertz in (100, 1000, 5000, 6800))
    ours = resample(torch.tensor(audio, dtype=torch.float32)[None], source, target)[0].numpy()
    theirs = soxr.resample(audio, source, target, quality="VHQ")
    assert len(ours) == -(-len(audio) * target // source)
    inner = slice(200, -200)
    assert np.abs(ours - theirs)[inner].max() < 5e-3


def test_resampling_keeps_out_what_would_alias():
    tone = torch.sin(2 * torch.pi * 9000 / 24_000 * torch.arange(24_000, dtype=torch.float64)).float()[None]
    assert resample(tone, 24_000, 16_000)[:, 200:-200].abs().max() < 1e-3


@pytest.mark.parametrize("samples", [1, 2, 3, 100, 1921])
def test_resampled_audio_is_rounded_up(samples):
    assert resample(torch.ones(2, samples), 24_000, 16_000).shape == (2, -(-samples * 2 // 3))


# Teachers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [None, 1])
def test_it_is_the_models_hidden_states_pooled(kind, layer, tmp_path):
    teacher = SemanticTeacher(save_teacher(tmp_path, kind), RATE, FRAME, layer=layer)
    audio = make_audio(6 * FRAME, batch=2)
    model = KINDS[kind][1].from_pretrained(tmp_path).eval()
    with torch.no_grad():
        padded = F.pad(resample(audio[:, 0], RATE, 16_000), (40, 40))  # 50 frames a second, each about its middle
        output = model(padded, output_hidden_states=True)
    hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
    assert hidden.shape[1] == 6 * 4
    expected = F.avg_pool1d(hidden.mT, 8, 4, padding=2, count_include_pad=False).mT  # as in the Moshi paper
    assert teacher.width == 16
    torch.testing.assert_close(teacher(audio), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 1000, FRAME, FRAME + 1, 3 * FRAME - 1, 2 * RATE])
def test_there_is_a_frame_for_each_of_the_codecs(wavlm, samples):
    features = SemanticTeacher(wavlm, RATE, FRAME)(make_audio(samples, batch=2))
    assert features.shape == (2, -(-samples // FRAME), 16)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("frame", [100, 240, 480, 1764])
def test_any_frame_rate_will_do(wavlm, frame):
    features = SemanticTeacher(wavlm, 22_050, frame)(make_audio(22_050))
    assert features.shape[1] == -(-22_050 // frame)
    assert torch.isfinite(features).all()


def test_frames_lie_where_the_codecs_do(wavlm):
    teacher = SemanticTeacher(wavlm, RATE, FRAME)
    pooling = teacher._pooling(50, 200)
    middles = (torch.arange(200) + 0.5) * 320 / 16_000
    np.testing.assert_allclose((pooling @ middles)[1:-1], ((torch.arange(50) + 0.5) * FRAME / RATE)[1:-1], rtol=1e-5)
    torch.testing.assert_close(pooling.sum(dim=1), torch.ones(50))


def test_audio_is_normalised_where_the_model_wants_it(tmp_path):
    plain = SemanticTeacher(save_teacher(tmp_path / "plain"), RATE, FRAME)
    normal = SemanticTeacher(save_teacher(tmp_path / "normal", normalizes=True), RATE, FRAME)
    audio = make_audio(3 * FRAME)
    torch.testing.assert_close(normal(audio), normal(0.3 * audio), rtol=1e-3, atol=1e-3)
    mono = resample(audio[:, 0], RATE, 16_000).numpy()[0]
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(mono, sampling_rate=16_000, return_tensors="pt").input_values
    for teacher, heard in ((plain, torch.from_numpy(mono)[None]), (normal, expected)):
        seen = []
        teacher.model.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0]))
        teacher(audio)
        torch.testing.assert_close(seen[0][:, 40 : 40 + len(mono)], heard, rtol=1e-4, atol=1e-5)


def test_a_teacher_does_not_change_nor_learn(wavlm):
    teacher = SemanticTeacher(wavlm, RATE, FRAME)
    audio = make_audio(3 * FRAME).requires_grad_()
    first = teacher(audio)
    assert not first.requires_grad
    assert torch.equal(first, teacher(audio))  # no dropout, no masking
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_stereo_is_mixed(wavlm):
    teacher = SemanticTeacher(wavlm, RATE, FRAME)
    stereo = make_audio(FRAME, channels=2)
    torch.testing.assert_close(teacher(stereo), teacher(stereo.mean(dim=1, keepdim=True)))


def test_what_cannot_teach_is_refused(wavlm, checkpoint, tmp_path):
    with pytest.raises(OSError, match="hf download nobody/nothing"):
        SemanticTeacher("nobody/nothing", RATE, FRAME)
    with pytest.raises(ValueError, match="type 'mimi', but teachers"):
        SemanticTeacher(str(checkpoint), RATE, FRAME)
    with pytest.raises(ValueError, match="layers 1 to 2"):
        SemanticTeacher(wavlm, RATE, FRAME, layer=3)
    with pytest.raises(ValueError, match="audio has shape"):
        SemanticTeacher(wavlm, RATE, FRAME)(torch.zeros(1, 100))


# The loss


def test_the_loss_is_one_minus_the_cosine():
    latents, projection = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.nn.Linear(2, 2, bias=False)
    projection.weight.data = 3 * torch.eye(2)
    teacher = torch.tensor([[[5.0, 0.0], [1.0, 1.0]]])
    assert distillation_loss(latents, teacher, projection).item() == pytest.approx((0 + 1 - 0.5**0.5) / 2, abs=1e-6)
    assert distillation_loss(latents, -teacher, projection).item() == pytest.approx((2 + 1 + 0.5**0.5) / 2, abs=1e-6)


def test_autocast_does_not_round_the_projection():
    torch.manual_seed(0)
    latents, teacher, projection = torch.randn(1, 5, 8), torch.randn(1, 5, 16), torch.nn.Linear(8, 16, bias=False)
    expected = distillation_loss(latents, teacher, projection)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert distillation_loss(latents, teacher, projection) == expected


def test_codec_and_projection_learn_from_the_teacher(wavlm):
    teacher = SemanticTeacher(wavlm, RATE, FRAME)(make_audio(10 * FRAME, batch=2))
    torch.manual_seed(0)
    latents, projection = torch.randn(2, 10, 8, requires_grad=True), torch.nn.Linear(8, 16, bias=False)
    optimizer = torch.optim.Adam([latents, *projection.parameters()], 0.03)
    losses = []
    for _ in range(100):
        losses.append(distillation_loss(latents, teacher, projection))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0]


def test_frames_that_differ_are_refused():
    with pytest.raises(ValueError, match="same batch and frames"):
        distillation_loss(torch.zeros(1, 3, 2), torch.zeros(1, 4, 2), torch.nn.Linear(2, 2))
