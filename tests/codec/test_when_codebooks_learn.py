"""Codebooks learn where gradients are recorded and the quantizer is trained, once from each batch, and else stay."""

import pytest
import torch
from support.tiny import FRAME, TINY, make_audio, make_model
from support.trainee import PLAIN, make_trainee
from torch.utils.checkpoint import checkpoint

from mimi_hf import QuantizerTraining


def buffers_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved(model, before):
    return [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]


@pytest.mark.parametrize("new", [False, True], ids=["trained", "new"])
@pytest.mark.parametrize("recording", ["no_grad", "inference_mode"])
def test_a_pass_without_gradients_moves_nothing(recording, new):
    model = make_trainee(update=True)
    if new:
        model.quantizer.reset_codebooks()
    before = buffers_of(model)
    with getattr(torch, recording)():
        assert not model.codebooks_learn
        model(make_audio(10 * FRAME))
    assert not moved(model, before)
    assert model.codebooks_learn
    model(make_audio(10 * FRAME))
    assert len(moved(model, before)) >= 2 * TINY["num_quantizers"]


# Without projections the quantizer has no parameters, and the encoder's say whether it is trained.
@pytest.mark.parametrize("changes", [{}, {"vector_quantization_hidden_dimension": 32, "codebook_dim": 32}])
@pytest.mark.parametrize("new", [False, True], ids=["trained", "new"])
def test_what_is_frozen_keeps_its_codebooks_unless_told_otherwise(changes, new):
    model = make_model(**changes).train()
    if new:
        model.quantizer.reset_codebooks()
    before = buffers_of(model)
    frozen = [model.quantizer] if [*model.quantizer.parameters()] else [model.encoder_transformer]
    for part in frozen:
        part.requires_grad_(False)
    model(make_audio(10 * FRAME)).loss.backward()
    model.requires_grad_(False)
    model(make_audio(10 * FRAME))
    assert not moved(model, before)
    model.quantizer.training_options = QuantizerTraining(**PLAIN, update=True)
    model(make_audio(10 * FRAME))
    assert moved(model, before)
    before = buffers_of(model)
    model.requires_grad_(True)
    model.quantizer.training_options = QuantizerTraining(**PLAIN, update=False)
    model(make_audio(10 * FRAME))
    assert not moved(model, before)
    model.quantizer.training_options = QuantizerTraining(**PLAIN)
    model(make_audio(10 * FRAME))
    assert moved(model, before)


def test_the_quantizer_is_trained_by_itself():
    model = make_trainee()
    before = buffers_of(model)
    model.requires_grad_(False)
    model.quantizer.requires_grad_(True)
    model(make_audio(10 * FRAME))
    assert moved(model, before)


def test_a_quantizer_in_evaluation_mode_learns_and_draws_nothing():
    model = make_trainee(update=True, quantizer_dropout=1.0, unquantized=1.0)
    before, audio = buffers_of(model), make_audio(10 * FRAME)
    model.quantizer.eval()
    assert not model.codebooks_learn
    output = model(audio)
    output.loss.backward()
    assert not moved(model, before)
    expected = model.eval()(audio)
    assert torch.equal(output.audio_codes, expected.audio_codes)
    torch.testing.assert_close(output.audio_values, expected.audio_values, atol=1e-5, rtol=1e-4)


def test_codebooks_move_in_the_forward_pass_alone_once_for_each_batch():
    model, batches = make_trainee(decay=0.9), make_audio(20 * FRAME, batch=4).split(2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    usage = model.quantizer.semantic_residual_vector_quantizer.codebooks[0].cluster_usage
    expected = usage.clone()
    for batch in batches:  # gradients add up over both
        output = model(batch)
        expected = 0.9 * expected + 0.1 * torch.bincount(output.audio_codes[:, 0].flatten(), minlength=len(usage))
        before = buffers_of(model)
        output.loss.backward()
        assert not moved(model, before)
    optimizer.step()
    assert not moved(model, before)
    torch.testing.assert_close(usage, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_leave_gradients_and_codebooks_the_same(reentrant):
    plain, recomputed = make_trainee(), make_trainee()
    recomputed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for model in (plain, recomputed):
        model(make_audio(10 * FRAME)).loss.backward()
    assert not moved(recomputed, buffers_of(plain))
    for (name, parameter), other in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_quantizer_learns_nothing_or_is_refused(reentrant):
    audio = make_audio(10 * FRAME).requires_grad_()
    model = make_trainee()
    with pytest.raises(RuntimeError, match=r"learn twice.*gradient_checkpointing_enable.*update=False"):
        checkpoint(lambda x: model(x).loss, audio, use_reentrant=reentrant).backward()
    model = make_trainee(update=False, quantizer_dropout=0.5, unquantized=0.5)
    other, before = make_trainee(update=False, quantizer_dropout=0.5, unquantized=0.5), buffers_of(model)
    torch.manual_seed(0)
    checkpoint(lambda x: model(x).loss, audio, use_reentrant=reentrant).backward()
    assert not moved(model, before)
    torch.manual_seed(0)
    other(audio).loss.backward()
    for (name, parameter), same in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad, msg=name)
