"""Training mode of the quantizer: gradients, moving averages, k-means, draws, and processes in step."""

import copy
import itertools
import multiprocessing
import os

import pytest
import torch
import torch.nn.functional as F
from tiny import FRAME, make_audio, make_model

from mimi_hf import MimiModel, QuantizerTraining
from mimi_hf.layers.quantizer_training import initialize_codebooks, kmeans, update_codebook

PLAIN = {"quantizer_dropout": 0.0, "unquantized": 0.0, "dead_threshold": 0.0}


def make_trainee(**options):
    model = make_model().train()
    model.quantizer.training_options = QuantizerTraining(**{**PLAIN, **options})
    return model


def codebooks_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "codebook" in name}


def test_latents_are_quantized_as_in_evaluation():
    model = make_trainee(update=False)
    audio = make_audio(10 * FRAME, batch=2)
    trained = model(audio)
    with torch.no_grad():
        evaluated = model.eval()(audio)
    assert torch.equal(trained.audio_codes, evaluated.audio_codes)
    torch.testing.assert_close(trained.audio_values, evaluated.audio_values, atol=1e-5, rtol=1e-4)


def test_gradients_pass_the_quantizer_straight():
    quantizer = make_trainee(update=False).quantizer
    latents = torch.randn(2, 7, 32, requires_grad=True)
    direction = torch.randn(2, 7, 32)
    (quantizer.quantize(latents, torch.ones(2, 7, dtype=torch.bool), 6).latents * direction).sum().backward()
    identity = torch.zeros_like(latents, requires_grad=True)
    halves = [quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer]
    passed = sum(
        F.linear(F.linear(identity, h.input_proj.weight[..., 0]), h.output_proj.weight[..., 0]) for h in halves
    )
    (passed * direction).sum().backward()
    torch.testing.assert_close(latents.grad, identity.grad)


def test_a_gradient_reaches_every_parameter():
    model = make_trainee()
    model(make_audio(10 * FRAME + 5, batch=2)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_codebooks_follow_the_moving_average():
    model = make_trainee(decay=0.9)
    codebook = model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    usage, sums = codebook.cluster_usage.clone(), codebook.embed_sum.clone()
    vectors, codes = torch.randn(50, 16), torch.randint(64, (50,))
    update_codebook(codebook, vectors, codes, model.quantizer.training_options)
    for entry in range(64):
        chosen = vectors[codes == entry]
        torch.testing.assert_close(codebook.cluster_usage[entry], 0.9 * usage[entry] + 0.1 * len(chosen))
        torch.testing.assert_close(codebook.embed_sum[entry], 0.9 * sums[entry] + 0.1 * chosen.sum(dim=0))


def test_what_lies_in_the_padding_teaches_nothing():
    short, padded = make_trainee(), make_trainee()
    audio = make_audio(10 * FRAME, batch=2)
    short(audio)
    noisy = torch.cat([audio, 100 * torch.randn(2, 1, 3 * FRAME)], dim=2)
    mask = torch.ones(2, 13 * FRAME, dtype=torch.bool)
    mask[:, 10 * FRAME :] = False
    output = padded(noisy, mask)
    assert output.audio_values.shape == noisy.shape and not output.audio_values[..., 10 * FRAME :].any()
    for name, buffer in codebooks_of(short).items():
        torch.testing.assert_close(buffer, codebooks_of(padded)[name], atol=1e-5, rtol=1e-4)


def test_fixed_codebooks_stay_as_they_are_bit_by_bit():
    model = make_trainee(update=False, dead_threshold=0.5)
    before = codebooks_of(model)
    model(make_audio(10 * FRAME))
    assert all(torch.equal(before[name], buffer) for name, buffer in codebooks_of(model).items())
    model.quantizer.training_options = QuantizerTraining(**PLAIN)
    model(make_audio(10 * FRAME))
    assert not all(torch.equal(before[name], buffer) for name, buffer in codebooks_of(model).items())


def test_dead_entries_become_latents_of_the_batch():
    codebook = make_model().quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    codebook.cluster_usage[:] = 1.0
    codebook.cluster_usage[:5] = 1e-4
    living = codebook.embed[5:].clone()
    vectors = torch.randn(30, 16)
    codes = torch.arange(30) + 10
    update_codebook(codebook, vectors, codes, QuantizerTraining(decay=0.999, dead_threshold=0.1))
    distances = torch.cdist(codebook.embed[:5], vectors).min(dim=1).values
    assert (distances < 0.01).all()
    assert (codebook.cluster_usage > 0.1).all()
    torch.testing.assert_close(codebook.embed[5:], living, atol=0.02, rtol=0.1)


def test_kmeans_finds_clusters_that_there_are():
    torch.manual_seed(0)
    truth = 10 * torch.randn(8, 4)
    vectors = truth.repeat(50, 1) + 0.01 * torch.randn(400, 4)
    centres, counts = kmeans(vectors, 64, 20)
    assert torch.cdist(vectors, centres).min(dim=1).values.max() < 0.1
    assert counts.sum() == 400 and centres.shape == (64, 4)


def test_kmeans_makes_do_with_few_vectors():
    centres, _ = kmeans(torch.randn(5, 4), 64, 3)
    assert centres.shape == (64, 4) and torch.isfinite(centres).all()


def test_each_initialised_codebook_leaves_less_over():
    torch.manual_seed(0)
    codebooks = [layer.codebook for layer in make_model().quantizer.acoustic_residual_vector_quantizer.layers]
    vectors = torch.randn(500, 16)
    initialize_codebooks(codebooks, vectors, 5, batches=1)
    residual, errors = vectors, []
    for codebook in codebooks:
        errors.append(float(residual.square().mean()))
        nearest = torch.cdist(residual, codebook.embed).argmin(dim=1)
        residual = residual - codebook.embed[nearest]
    assert all(later < 0.9 * earlier for earlier, later in itertools.pairwise(errors))


def test_a_reset_quantizer_begins_with_its_first_batch():
    model = make_trainee()
    model.quantizer.reset_codebooks()
    before = codebooks_of(model)
    first = model(make_audio(20 * FRAME, batch=4))
    after = codebooks_of(model)
    assert all(after[name].all() for name in after if name.endswith("initialized"))
    assert not any(torch.equal(before[name], after[name]) for name in after if name.endswith("embed_sum"))
    assert first.commitment_loss < make_trainee()(make_audio(20 * FRAME, batch=4)).commitment_loss


def test_shares_of_sequences_are_as_asked_for():
    model = make_trainee(unquantized=0.5, update=False)
    torch.manual_seed(0)
    latents = torch.randn(400, 1, 32)
    mask = torch.ones(400, 1, dtype=torch.bool)
    mixed = model.quantizer.quantize(latents, mask, 6)
    model.quantizer.training_options = QuantizerTraining(**{**PLAIN, "update": False})
    quantized = model.quantizer.quantize(latents, mask, 6)
    raw = 1 - torch.isclose(mixed.latents, quantized.latents).all(dim=2).float().mean()
    assert 0.4 < raw < 0.6
    model.quantizer.training_options = QuantizerTraining(**{**PLAIN, "update": False, "quantizer_dropout": 1.0})
    dropped = model.quantizer.quantize(latents, mask, 6)
    whole = torch.isclose(dropped.latents, quantized.latents, atol=1e-5).all(dim=2).float().mean()
    assert 0.08 < whole < 0.28  # one in six
    model.quantizer.training_options = QuantizerTraining(enabled=False)
    bare = model.quantizer.quantize(latents, mask, 6)
    assert not torch.isclose(bare.latents, quantized.latents).all(dim=2).any() and bare.commitment == 0


def test_a_model_trained_a_step_loads_here_and_in_transformers(tmp_path):
    from transformers import MimiModel as NativeMimiModel

    model = make_trainee(dead_threshold=0.1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    audio = make_audio(10 * FRAME)
    model(audio).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    expected = model.eval().encode(audio).audio_codes
    for kind in (MimiModel, NativeMimiModel):
        assert torch.equal(kind.from_pretrained(tmp_path).eval().encode(audio).audio_codes, expected), kind


def test_losses_fall_and_copies_train_apart():
    torch.manual_seed(0)
    model = make_trainee()
    other = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    audio = make_audio(20 * FRAME)
    losses = []
    for _ in range(30):
        output = model(audio)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.reconstruction_loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert all(torch.equal(item, other.state_dict()[name]) for name, item in make_model().state_dict().items())


def test_transformers_trainer_takes_it_as_it_is(tmp_path):
    from transformers import Trainer, TrainingArguments

    data = [{"input_values": audio} for audio in make_audio(10 * FRAME, batch=6)]
    arguments = TrainingArguments(tmp_path, max_steps=3, per_device_train_batch_size=2, report_to=[], use_cpu=True)
    model = make_trainee()
    before = model.state_dict()["decoder.layers.0.conv.weight"].clone()
    result = Trainer(model, arguments, train_dataset=data).train()
    assert result.training_loss > 0
    assert not torch.equal(before, model.state_dict()["decoder.layers.0.conv.weight"])


@pytest.mark.parametrize(
    "wrong", [{"decay": 1.0}, {"unquantized": 1.5}, {"quantizer_dropout": -0.1}, {"kmeans_iterations": 0}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuantizerTraining(**wrong)


def _train_as_rank(rank, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(rank)
    model = make_trainee(dead_threshold=0.5)
    model.quantizer.reset_codebooks()
    for step in range(3):
        audio = make_audio(20 * FRAME, batch=2, seed=10 * rank + step)
        mask = torch.ones(2, 20 * FRAME, dtype=torch.bool)
        mask[0, (rank + 1) * 5 * FRAME :] = False
        model(audio, mask, return_loss=False)
    results.put((rank, {name: buffer.numpy() for name, buffer in codebooks_of(model).items()}))
    torch.distributed.destroy_process_group()


def test_two_processes_hold_the_same_codebooks():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_train_as_rank, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    for name, buffer in found[0].items():
        assert (buffer == found[1][name]).all(), name
