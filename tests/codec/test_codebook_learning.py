"""Training mode of the quantizer: gradients, moving averages, k-means, draws, and processes in step."""

import itertools
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.tiny import FRAME, TINY, make_audio, make_model
from support.trainee import PLAIN, make_trainee

from mimi_hf import QuantizerTraining
from mimi_hf.codec.codebook_learning import initialize_codebooks, kmeans, quantize_levels, update_codebook
from mimi_hf.codec.quantizer import SplitResidualVectorQuantizer


def codebooks_of(model):
    """A copy of all buffers of the codebooks."""
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


def test_half_precision_trains_with_codebooks_in_single():
    audio = make_audio(10 * FRAME, batch=2)
    automatic, converted = make_trainee(), make_trainee().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = automatic(audio).loss
    for model, value in ((automatic, loss), (converted, converted(audio).loss)):
        assert value.dtype == torch.float32
        value.backward()
        assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())
        for name, buffer in codebooks_of(model).items():
            assert buffer.dtype == torch.float32 and torch.isfinite(buffer).all(), name


def test_a_sequence_without_acoustic_codebooks_teaches_their_projection_nothing():
    model = make_trainee(update=False)
    quantized = model.quantizer.quantize(torch.randn(2, 7, 32), torch.ones(2, 7, dtype=torch.bool), 1)
    assert quantized.codes.shape == (2, 1, 7)
    torch.testing.assert_close(quantized.latents, quantized.semantic)
    (quantized.latents.square().sum() + quantized.commitment).backward()
    assert model.quantizer.semantic_residual_vector_quantizer.input_proj.weight.grad.any()
    assert not model.quantizer.acoustic_residual_vector_quantizer.input_proj.weight.grad.any()

    model = make_trainee(update=False)
    dropped, draws = 0, 40
    for _ in range(draws):  # each sequence by itself draws how many of its codebooks it uses
        model.quantizer.training_options = QuantizerTraining(**{**PLAIN, "update": False, "quantizer_dropout": 1.0})
        model.zero_grad()
        latents = model.quantizer.quantize(torch.randn(1, 3, 32), torch.ones(1, 3, dtype=torch.bool), 6).latents
        latents.square().sum().backward()
        dropped += not model.quantizer.acoustic_residual_vector_quantizer.input_proj.weight.grad.any()
    assert 0 < dropped < draws / 2  # one in six


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


def test_sums_and_errors_are_of_the_codebooks_in_use():
    model = make_trainee(update=False)
    codebooks = [layer.codebook for layer in model.quantizer.acoustic_residual_vector_quantizer.layers]
    vectors, levels = torch.randn(3, 4, 16), torch.tensor([0, 2, 5])
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 1:] = False
    total, codes, error, count = quantize_levels(codebooks, vectors, levels, mask, model.quantizer.training_options)
    errors = []
    for row, frame in itertools.product(range(3), range(4)):
        residual = vectors[row, frame]
        for codebook, code in zip(codebooks[: levels[row]], codes[row, :, frame], strict=False):
            assert code == (codebook.embed - residual).norm(dim=1).argmin()
            residual = residual - codebook.embed[code]
            errors += [residual.square().mean()] if mask[row, frame] else []
        torch.testing.assert_close(total[row, frame], vectors[row, frame] - residual)
    torch.testing.assert_close(error, sum(errors))
    assert count == len(errors) == 2 + 5 * 4


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


def test_left_padding_trains_as_right_padding_does():
    left, right = make_trainee(), make_trainee()
    audio, mask = make_audio(10 * FRAME, batch=2), torch.ones(2, 10 * FRAME, dtype=torch.bool)
    mask[1, 130:] = False
    output = right(audio, mask)
    shifted = audio.clone()
    shifted[1] = audio[1].roll(110, dims=1)
    other = left(shifted, torch.stack([mask[0], mask[1].flip(0)]))
    assert not other.audio_values[1, :, :110].any() and not output.audio_values[1, :, 130:].any()
    torch.testing.assert_close(other.audio_values[1, :, 110:], output.audio_values[1, :, :130])
    for name in ("audio_codes", "audio_codes_mask"):
        assert torch.equal(output[name], other[name])
    for name, buffer in codebooks_of(right).items():
        assert torch.equal(buffer, codebooks_of(left)[name])


def test_codebooks_are_made_from_real_frames_alone():
    model = make_trainee()
    model.quantizer.reset_codebooks()
    latents = torch.randn(2, 40, 32)
    latents[:, 20:] = 1e4
    latents[0, 3] = float("nan")
    mask = torch.arange(40).expand(2, -1) < 20
    model.quantizer.quantize(latents, mask, 6)
    for name, buffer in codebooks_of(model).items():
        assert torch.isfinite(buffer).all() and buffer.abs().max() < 100, name
    model.quantizer.reset_codebooks()
    with pytest.raises(ValueError, match="No latents"):
        model.quantizer.quantize(latents, torch.zeros_like(mask), 6)


def test_a_step_that_is_not_finite_shows_in_the_loss_and_spares_the_codebooks():
    model = make_trainee(dead_threshold=0.9)
    audio = make_audio(10 * FRAME, batch=2)
    audio[0, 0, 5] = float("nan")
    assert model(audio).loss.isnan()
    assert all(torch.isfinite(buffer).all() for buffer in codebooks_of(model).values())


def test_fixed_codebooks_stay_as_they_are_bit_by_bit():
    model = make_trainee(update=False, dead_threshold=0.5)
    model.quantizer.reset_codebooks()
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


def test_an_entry_that_nothing_chooses_stays_where_it_is():
    codebook = make_trainee().quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    before = codebook.embed.clone()
    options = QuantizerTraining(decay=0.9, dead_threshold=0.0)
    for _ in range(500):
        update_codebook(codebook, torch.zeros(1, 16), torch.zeros(1, dtype=torch.int64), options)
    torch.testing.assert_close(codebook.embed[1:], before[1:], atol=1e-4, rtol=1e-4)
    assert codebook.embed[0].abs().max() < 1e-3


def test_kmeans_makes_do_with_few_vectors():
    centres, counts = kmeans(torch.randn(5, 4), 64, 3)
    assert centres.shape == (64, 4) and torch.isfinite(centres).all()
    assert float(counts.sum()) == pytest.approx(5)


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


@pytest.mark.parametrize(
    "wrong", [{"decay": 1.0}, {"unquantized": 1.5}, {"quantizer_dropout": -0.1}, {"kmeans_iterations": 2.5}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuantizerTraining(**wrong)


def make_quantizer(**options):
    """A quantizer by itself, the same each time: its parts need nothing of transformers, whose import takes long."""
    torch.manual_seed(0)
    quantizer = SplitResidualVectorQuantizer(SimpleNamespace(**TINY, num_semantic_quantizers=1)).train()
    for name, buffer in quantizer.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_()
    quantizer.training_options = QuantizerTraining(**{**PLAIN, **options})
    return quantizer


def make_steps(frames):
    """Latents of two processes and which of them are real, for three steps. One process has no real frame at first."""
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 2, 2, frames, 32, generator=random)
    mask = torch.rand(3, 2, 2, frames, generator=random) < 0.8
    mask[0, 0] = False
    return list(zip(latents, mask, strict=True))


def test_iterations_of_kmeans_bring_the_centres_nearer():
    vectors = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    errors = []
    for iterations in (1, 3, 20):
        torch.manual_seed(0)
        centres, counts = kmeans(vectors, 32, iterations)
        errors.append(torch.cdist(vectors, centres).min(dim=1).values.square().mean())
        assert counts.min() > 0 and counts.sum() == 2000
    assert errors[1] < 0.95 * errors[0] and errors[2] < 0.99 * errors[1]


def test_the_commitment_draws_latents_to_the_entries():
    quantizer = make_quantizer(update=False)
    latents, mask = torch.randn(2, 7, 32, requires_grad=True), torch.ones(2, 7, dtype=torch.bool)
    before = quantizer.quantize(latents, mask, 6).commitment
    (slope,) = torch.autograd.grad(before, latents)
    after = quantizer.quantize(latents - 0.01 * slope / slope.norm(), mask, 6).commitment
    torch.testing.assert_close(before - after, 0.01 * slope.norm(), atol=0, rtol=0.05)


def test_semantic_latents_are_of_the_semantic_codebooks_whatever_the_decoder_gets():
    quantizer, mask = make_quantizer(update=False), torch.ones(2, 7, dtype=torch.bool)
    latents = torch.randn(2, 7, 32)
    expected = quantizer.lookup(quantizer.search(latents, 1))
    for options in ({}, {"unquantized": 1.0}, {"quantizer_dropout": 1.0}):
        quantizer.training_options = QuantizerTraining(**{**PLAIN, "update": False, **options})
        torch.testing.assert_close(quantizer.quantize(latents, mask, 6).semantic, expected)


def _train_as_rank(rank, folder):
    torch.set_num_threads(1)
    where = {"init_method": f"file://{folder}/store", "rank": rank, "world_size": 2}
    # Processes out of step wait for each other: by default for half an hour.
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60), **where)
    results = {}
    for name, options, frames in (
        ("plain", {}, 40),
        ("replaced", {"dead_threshold": 0.5, "decay": 0.5}, 40),
        ("few", {}, 8),
    ):
        quantizer = make_quantizer(**options)
        torch.manual_seed(rank)
        if name != "plain":
            quantizer.reset_codebooks()
        for latents, mask in make_steps(frames):
            quantizer.quantize(latents[rank], mask[rank], 6)
        results[name] = codebooks_of(quantizer)
    torch.save(results, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_learn_as_one(tmp_path):
    torch.multiprocessing.spawn(_train_as_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    for name, codebooks in first.items():
        for key, buffer in codebooks.items():
            assert torch.equal(buffer, second[name][key]) and torch.isfinite(buffer).all(), (name, key)
    for name in ("replaced", "few"):
        embeds = [buffer for key, buffer in first[name].items() if key.endswith("embed_sum")]
        assert all((entries != 0).any(dim=1).all() for entries in embeds), name
    alone = make_quantizer()
    for latents, mask in make_steps(40):
        alone.quantize(latents.flatten(0, 1), mask.flatten(0, 1), 6)
    for key, buffer in codebooks_of(alone).items():
        torch.testing.assert_close(first["plain"][key], buffer)
