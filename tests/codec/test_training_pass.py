"""A model in training mode: what it learns, returns, and how it loads elsewhere."""

import copy
import pickle

import torch
from support.tiny import FRAME, make_audio, make_model
from support.trainee import make_trainee


def test_a_model_trained_a_step_loads_here_and_in_transformers(tmp_path):
    from transformers import MimiModel as NativeMimiModel

    from mimi_hf import MimiModel

    model = make_trainee(dead_threshold=0.1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    audio = make_audio(10 * FRAME)
    model(audio).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    expected = model.eval().encode(audio).audio_codes
    for kind in (MimiModel, NativeMimiModel):
        assert torch.equal(kind.from_pretrained(tmp_path).eval().encode(audio).audio_codes, expected), kind


def test_codes_mean_what_the_codebooks_of_the_moment_say():
    model = make_trainee(decay=0.5)
    audio = make_audio(10 * FRAME)
    codes = model.encode(audio).audio_codes
    before = model.quantizer.lookup(codes)
    model(audio)
    fresh = make_model()
    fresh.load_state_dict(model.state_dict())
    expected = fresh.quantizer.lookup(codes)
    assert not torch.allclose(expected, before)
    assert torch.equal(model.quantizer.lookup(codes), expected)
    assert torch.equal(model.eval().quantizer.lookup(codes), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model)).quantizer.lookup(codes), expected)


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
    from transformers import Trainer, TrainingArguments, default_data_collator

    data = [{"input_values": audio} for audio in make_audio(10 * FRAME, batch=6)]
    arguments = TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=2, eval_strategy="steps", report_to=[], use_cpu=True
    )
    model = make_trainee()
    before = model.state_dict()["decoder.layers.0.conv.weight"].clone()
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    assert trainer.train().training_loss > 0
    assert not torch.equal(before, model.state_dict()["decoder.layers.0.conv.weight"])
    assert "eval_loss" not in trainer.evaluate()
    trainer.data_collator = lambda rows: default_data_collator(rows) | {"return_loss": True}
    assert trainer.evaluate()["eval_loss"] > 0


def test_evaluation_gives_the_reconstruction_loss_where_asked():
    model = make_model()
    audio, mask = make_audio(10 * FRAME, batch=2), torch.ones(2, 10 * FRAME, dtype=torch.bool)
    mask[1, :110] = False
    trainee = make_trainee(update=False)
    for padding in (None, mask):
        assert model(audio, padding).loss is None
        expected = trainee(audio, padding).reconstruction_loss
        torch.testing.assert_close(model(audio, padding, return_loss=True).loss, expected, rtol=1e-4, atol=1e-5)
    noisy = audio.masked_fill(~mask[:, None], float("nan"))
    torch.testing.assert_close(model(noisy, mask, return_loss=True).loss, expected, rtol=1e-4, atol=1e-5)
    assert trainee(audio, return_loss=False).loss is None


def test_what_comes_out_in_the_padding_counts_for_nothing():
    from mimi_hf.codec.training_pass import padded_reconstruction_loss

    audio, estimate = make_audio(10 * FRAME), make_audio(10 * FRAME, seed=1).requires_grad_()
    mask = torch.ones(1, 10 * FRAME, dtype=torch.bool)
    mask[:, 110:] = False
    padded_reconstruction_loss(audio, mask, estimate, 24_000).backward()
    assert (estimate.grad[..., 110:] == 0).all() and (estimate.grad[..., :110] != 0).any()
