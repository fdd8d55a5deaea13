"""Training runs of tiny models: what they leave behind, how they go on, and what they never touch."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from support.training import MODEL, make_config, save_teacher, voice
from torch.optim.swa_utils import AveragedModel

from mimi_hf import MimiModel, QuantizerTraining
from mimi_hf.training.config import TrainingConfig
from mimi_hf.training.objective.discriminator import MimiDiscriminator
from mimi_hf.training.run.trainer import Trainer, TrainingFailedError
from mimi_hf.training.run.validation import NEVER


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    for number, pitch in enumerate([110, 160, 220]):
        soundfile.write(folder / f"{number}.wav", voice(4, pitch, number), 24_000)
    return folder


def run(content):
    figures = []
    Trainer(TrainingConfig.from_dict(content), figures.append).run()
    return figures


def losses_of(figures):
    return {one["step"]: one for one in figures if "speed" in one}


@pytest.fixture(scope="module")
def trained(speech, tmp_path_factory):
    """A whole run, with recordings to validate on."""
    output = tmp_path_factory.mktemp("run")
    content = make_config(
        speech, output, data={"validation": [str(speech)], "validation_seconds": 2}, run={"validate_every": 4}
    )
    return content, run(content), output


def test_a_run_leaves_a_model_that_loads_everywhere(trained):
    from transformers import MimiModel as NativeMimiModel

    _, figures, output = trained
    audio = torch.from_numpy(voice(0.8, 150, 3))[None, None]
    model, native = MimiModel.from_pretrained(output / "model"), NativeMimiModel.from_pretrained(output / "model")
    with torch.no_grad():
        ours, theirs = model(audio), native(audio)
    assert torch.equal(ours.audio_codes, theirs.audio_codes)
    torch.testing.assert_close(ours.audio_values, theirs.audio_values[..., : audio.shape[2]], atol=1e-5, rtol=1e-4)
    assert set(losses_of(figures)) == set(range(1, 9))
    assert all(np.isfinite(one["mel"]) for one in losses_of(figures).values())
    assert (output / "best" / "model.safetensors").is_file()
    assert any("validation" in one for one in figures)
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["group"] == "train"] == list(range(1, 9))


def test_the_saved_model_is_as_loud_as_the_data(trained):
    # The factor that audio is scaled by in training is folded into the weights.
    content, _, output = trained
    model = MimiModel.from_pretrained(output / "model")
    trainer = Trainer(TrainingConfig.from_dict(content))  # where the run ended
    audio = torch.from_numpy(voice(0.48, 150, 3))[None, None]
    trained_model = trainer.trained.export(trainer.average)
    with torch.no_grad():
        torch.testing.assert_close(model(audio).audio_values, trained_model(audio).audio_values)
        scaled = trainer.trained.model.eval().encode_latents(audio * trainer.trained.scale)
        folded = trainer.trained.export(AveragedModel(trainer.trained.model)).encode_latents(audio)
    torch.testing.assert_close(scaled, folded, atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_run_and_another_another(speech, trained, tmp_path):
    content, figures, _ = trained
    same = run({**content, "run": {**content["run"], "output": str(tmp_path / "same")}})
    other = run({**content, "run": {**content["run"], "output": str(tmp_path / "other"), "seed": 1}})
    mel = [[one["mel"] for one in losses_of(part).values()] for part in (figures, same, other)]
    assert mel[0] == pytest.approx(mel[1], rel=1e-4)
    assert mel[0] != pytest.approx(mel[2], rel=1e-4)


CODE = """
import json, sys
from mimi_hf.training.config import TrainingConfig
from mimi_hf.training.run.trainer import Trainer
Trainer(TrainingConfig.from_dict(json.loads(sys.argv[1])), lambda figures: print(json.dumps(figures), flush=True)).run()
"""


def test_a_killed_run_goes_on_as_if_nothing_had_been(speech, tmp_path):
    losses = {"adversarial": 1.0, "feature_matching": 1.0, "discriminator": {"filters": 4, "windows": [256, 128]}}
    options = {"losses": losses, "optimizer": {"steps": 10, "warmup_steps": 2}}
    undisturbed = losses_of(run(make_config(speech, tmp_path / "whole", **options)))
    content = make_config(speech, tmp_path / "killed", **options)
    # As many threads as here: others add up in another order, and early steps of optimizers make much of that.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", CODE, json.dumps(content)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if json.loads(line).get("step") == 6:  # after the checkpoint of step 4
                os.kill(process.pid, signal.SIGKILL)
                break
    assert not (tmp_path / "killed" / "model").exists()
    goes_on = losses_of(run(content))
    assert min(goes_on) == 5
    for step, figures in goes_on.items():
        for name in ("mel", "commitment", "adversarial", "discriminator", "gradient_norm"):
            assert figures[name] == pytest.approx(undisturbed[step][name], rel=1e-4, abs=1e-6), (step, name)
    for name in ("model", "discriminator"):
        kind = MimiModel if name == "model" else MimiDiscriminator
        whole, resumed = (kind.from_pretrained(tmp_path / run / name).state_dict() for run in ("whole", "killed"))
        for key, tensor in whole.items():
            torch.testing.assert_close(resumed[key], tensor, atol=1e-5, rtol=1e-3)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 11))


def test_a_decoder_learns_alone_and_every_code_stays(speech, trained, tmp_path):
    *_, output = trained
    content = make_config(
        speech,
        tmp_path / "tuned",
        model={"start": str(output / "model"), "train": ["decoder"], "config": {}},
        quantizer={"unquantized_steps": 0},
    )
    run(content)
    before, after = (MimiModel.from_pretrained(path) for path in (output / "model", tmp_path / "tuned" / "model"))
    audio = torch.from_numpy(voice(2, 130, 5))[None, None]
    with torch.no_grad():
        assert torch.equal(before.encode(audio).audio_codes, after.encode(audio).audio_codes)
        assert not torch.equal(before(audio).audio_values, after(audio).audio_values)
    assert before.codebook_digest == after.codebook_digest
    old, new = before.state_dict(), after.state_dict()
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"decoder", "decoder_transformer", "upsample"}


@pytest.mark.parametrize("parts", [["decoder"], ["encoder", "decoder"]])
def test_adapters_are_merged_into_what_is_saved(speech, trained, tmp_path, parts):
    pytest.importorskip("peft")
    *_, output = trained
    learns = parts if len(parts) == 1 else ["encoder", "quantizer", "decoder"]  # the codebooks stay all the same
    model = {"start": str(output / "model"), "train": learns, "config": {}, "lora_rank": 2}
    run(make_config(speech, tmp_path / "lora", model=model, quantizer={"unquantized_steps": 0}))
    old, new = (
        MimiModel.from_pretrained(path).state_dict() for path in (output / "model", tmp_path / "lora" / "model")
    )
    assert list(old) == list(new)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(".self_attn." in name or ".mlp." in name for name in changed)
    assert {name.split(".")[0] for name in changed} == {f"{part}_transformer" for part in parts}


def test_accumulation_equals_one_large_batch(speech, tmp_path):
    quantizer = {"unquantized_steps": 7}
    whole = Trainer(TrainingConfig.from_dict(make_config(speech, tmp_path / "whole", quantizer=quantizer)))
    optimizer, data = {"accumulation": 2}, {"batch_size": 1}
    content = make_config(speech, tmp_path / "parts", optimizer=optimizer, data=data, quantizer=quantizer)
    parts = Trainer(TrainingConfig.from_dict(content))
    parts.trained.model.load_state_dict(whole.trained.model.state_dict())
    batches = [whole.crops.batch(step) for step in range(2)]
    # Spectral convergence is of a whole batch, the other losses are means.
    for trainer in (whole, parts):
        trainer.objective.options = dataclasses.replace(trainer.objective.options, spectral_convergence=0.0)
    for batch in batches:
        one = whole._take_step([batch])
        two = parts._take_step(list(batch.split(1)))
        assert float(one["gradient_norm"]) == pytest.approx(float(two["gradient_norm"]), rel=1e-3)


def test_a_step_that_is_not_finite_is_not_taken(speech, tmp_path, monkeypatch):
    trainer = Trainer(TrainingConfig.from_dict(make_config(speech, tmp_path, quantizer={"unquantized_steps": 7})))
    batch = trainer.crops.batch

    def spoiled(step, *args):
        return batch(step, *args) * (float("nan") if step == 5 else 1.0)

    monkeypatch.setattr(trainer.crops, "batch", spoiled)
    with pytest.raises(TrainingFailedError, match=r"Step 5 .*not finite.*last checkpoint is of step 4"):
        trainer.run()
    assert all(torch.isfinite(item).all() for item in trainer.trained.model.state_dict().values())


def test_a_discriminator_whose_gradient_is_not_finite_is_not_saved(speech, tmp_path):
    losses = {"adversarial": 1.0, "feature_matching": 1.0, "discriminator": {"filters": 4, "windows": [256]}}
    trainer = Trainer(TrainingConfig.from_dict(make_config(speech, tmp_path, losses=losses)))
    bias = next(trainer.objective.discriminator.parameters())
    bias.register_hook(lambda gradient: gradient * (float("nan") if trainer.step == 5 else 1.0))
    with pytest.raises(TrainingFailedError, match=r"Step 5 .*discriminator_gradient_norm nan.*of step 4"):
        trainer.run()
    assert all(torch.isfinite(item).all() for item in trainer.objective.discriminator.state_dict().values())


def test_a_small_model_can_learn_one_clip_by_heart(speech, tmp_path):
    from mimi_hf.evaluation.metrics import score

    soundfile.write(tmp_path / "clip.wav", voice(0.48, 120, 0), 24_000)
    content = make_config(
        tmp_path / "clip.wav",
        tmp_path / "run",
        run={"log_every": 50, "checkpoint_every": 1000},
        losses={"mel": 0.1, "spectral_convergence": 0.1, "log_magnitude": 0.0, "waveform": 20.0},
        quantizer={"unquantized_steps": 60, "quantizer_dropout": 0.0, "unquantized": 0.0},
        optimizer={"steps": 250, "warmup_steps": 20, "ema_decay": 0.9},
        data={"batch_size": 1},
        model={"config": {**MODEL, "num_filters": 8}},
    )
    first = Trainer(TrainingConfig.from_dict({**content, "run": {**content["run"], "output": str(tmp_path / "first")}}))
    audio = torch.from_numpy(voice(0.48, 120, 0))[None, None]
    run(content)
    with torch.no_grad():
        start = first.trained.export(first.average).eval()(audio).audio_values
        end = MimiModel.from_pretrained(tmp_path / "run" / "model")(audio).audio_values
    before, after = (
        score(audio[0, 0], estimate[0, 0], 24_000, ["si_sdr"])["si_sdr"].value for estimate in (start, end)
    )
    assert after > max(before, -10) + 10, (before, after)


@pytest.mark.full_size
def test_a_model_of_the_published_size_learns_a_clip():
    from mimi_hf import MimiConfig

    torch.manual_seed(0)
    model = MimiModel(MimiConfig()).train()
    model.quantizer.reset_codebooks()
    model.quantizer.training_options = QuantizerTraining(quantizer_dropout=0.0, unquantized=0.0, kmeans_iterations=1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    clip = torch.from_numpy(voice(0.64, 120, 0))[None, None]
    losses = []
    for _ in range(4):
        output = model(clip)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
    assert all(np.isfinite(losses)), losses
    assert losses[-1] < 0.8 * losses[0], losses


def test_two_processes_end_with_the_same_model(speech, tmp_path):
    losses = {"distillation": 1.0, "teacher": save_teacher(tmp_path / "teacher")}
    content = make_config(speech, tmp_path / "run", data={"batch_size": 1}, losses=losses)
    script = tmp_path / "rank.py"
    script.write_text(
        "import json, sys, torch\n"
        "from mimi_hf.training.run.trainer import Trainer\n"
        "from mimi_hf.training.config import TrainingConfig\n"
        "trainer = Trainer(TrainingConfig.from_dict(json.loads(sys.argv[1])))\n"
        "trainer.run()\n"
        "state = {**trainer.trained.model.state_dict(), 'projection': trainer.objective.projection.weight}\n"
        "torch.save(state, f'{sys.argv[2]}-{trainer.rank}.pt')\n"
        "assert trainer.world == 2\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, torchrun), json.dumps(content), str(tmp_path / "state")], env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    first, second = (torch.load(tmp_path / f"state-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def changed(content, group, **fields):
    """The trainer that goes on with a run, with other options."""
    return Trainer(TrainingConfig.from_dict({**content, group: {**content[group], **fields}}))


def test_a_folder_of_another_run_is_refused(trained):
    content, *_ = trained
    with pytest.raises(ValueError, match=r"holds a run with data.batch_size=2, not 3"):
        changed(content, "data", batch_size=3)


def test_what_a_failed_step_advises_may_change(trained):
    content, *_ = trained
    assert changed(content, "optimizer", learning_rate=1e-4, max_norm=1.0).step == 8


def test_a_run_that_never_began_holds_no_folder(speech, tmp_path):
    with pytest.raises(FileNotFoundError):
        Trainer(TrainingConfig.from_dict(make_config(tmp_path / "nowhere", tmp_path / "run")))
    assert Trainer(TrainingConfig.from_dict(make_config(speech, tmp_path / "run"))).step == 0


def test_the_best_is_of_the_same_recordings(trained):
    content, *_ = trained
    assert changed(content, "run").best < NEVER
    assert changed(content, "data", validation_seconds=1.0).best == NEVER


def test_another_number_of_processes_is_told(trained, tmp_path, caplog):
    content, _, output = trained
    shutil.copytree(output / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "step-8" / "training.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "processes": 2}, path)
    changed(content, "run", output=str(tmp_path))
    assert "of 2 processes, the next ones are of 1" in caplog.text


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 16, 64), (2, 64, 16)])
def test_muon_makes_all_singular_values_about_one(shape, dtype):
    from mimi_hf.training.run.optimizers import orthogonalize

    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    result = orthogonalize(matrices, dtype=dtype)
    assert result.dtype == matrices.dtype and result.shape == shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.35
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(result.flatten(1), (left @ right).flatten(1)).min() > 0.95
