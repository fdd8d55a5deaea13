"""The options of a training run: read from YAML, explained, and refused where they cannot be."""

import dataclasses
import re
import typing

import pytest
import soundfile
import yaml
from support.training import make_config, voice
from typer.testing import CliRunner

from mimi_hf.cli import app
from mimi_hf.cli.train import example_config
from mimi_hf.training.config import TrainingConfig
from mimi_hf.training.data.augmentation import Augmentation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": {"outptu": "x"}}, "no field 'outptu'. Did you mean 'output'"),
        ({"optimizer": {"steps": "many"}}, "optimizer.steps='many' must be of type int"),
        ({"optimizer": {"steps": 0}}, "optimizer.steps=0 must be at least 1"),
        ({"losses": {"preset": "best"}}, "losses.preset='best' must be reconstruction"),
        ({"losses": {"distillation": 1.0}}, "needs losses.teacher"),
        ({"losses": {"preset": "adversarial", "adversarial_start": 5}}, "without any loss on the audio"),
        ({"model": {"train": ["decoder"]}}, "a new model learns as a whole"),
        ({"quantizer": {"decay": 2.0}}, "decay=2.0"),
        ({"losses": {"preset": {"x": 3}}}, "losses.preset={'x': 3} must be reconstruction"),
        ({"losses": {"discriminator": {"filter": 8}}}, "losses.discriminator has no field 'filter'"),
        ({"model": {"config": {"num_filter": 8}}}, "no field 'num_filter'. Did you mean 'num_filters'"),
        ({"model": {"start": "x", "config": {}}}, "unquantized_steps=3 must be 0 with model.start"),
        ({"model": {"start": "x", "config": {}, "lora_rank": 2, "train": ["quantizer"]}}, "needs encoder or decoder"),
        ({"optimizer": {"steps": 3}}, "unquantized_steps=3 must be below optimizer.steps=3"),
        ({"run": {"device": "cuda:1"}}, "CUDA_VISIBLE_DEVICES"),
        ({"data": {"augmentation": {"gain": [3, -3]}}}, "gain"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(tmp_path, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TrainingConfig.from_dict(make_config("speech", tmp_path, **change))


@pytest.mark.parametrize("name", ["tiny", "full", "finetune"])
def test_the_configurations_of_the_package_are_valid(name, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(example_config(name))
    config = TrainingConfig.from_yaml(path, {"optimizer.steps": 5000})
    assert config.optimizer.steps == 5000
    assert TrainingConfig.from_dict(config.to_dict()) == config


def test_the_command_trains(tmp_path):
    soundfile.write(tmp_path / "speech.wav", voice(1, 110, 0), 24_000)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config(tmp_path / "speech.wav", tmp_path / "run")))
    changes = ["--set", "optimizer.steps=4", "--set", "optimizer.learning_rate=1e-3"]
    result = CliRunner().invoke(app, ["train", str(path), *changes, "--json"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    result = CliRunner().invoke(app, ["train", str(path), "--set", "optimizer.stepz=2"])
    assert result.exit_code == 1 and "Did you mean 'steps'" in result.output


def test_every_field_is_explained():
    told = CliRunner().invoke(app, ["train", "--fields"]).output
    assert "optimizer.learning_rate = 0.003" in told and "preset: where the weights begin" in told
    for kind in (*typing.get_type_hints(TrainingConfig).values(), Augmentation):
        for field in dataclasses.fields(kind):
            assert re.search(rf"\b{field.name}\b[^=\n]*[:.]", told), field.name


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("", {"optimizer.steps": 3}, "is missing"),
        ("just text", {"optimizer.steps": 3}, "must be a mapping"),
        ("run: [a", {}, "is no YAML"),
        ("run:\ndata:\n", {}, "run.output is missing"),
        ("optimizer: 3", {"optimizer.steps": 3}, "optimizer is 3, and no group"),
        ("data: {train: [x], augmentation: }", {"data.augmentation.gain_db": [3, -3]}, "the lower one first"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, text, changes, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises((ValueError, TypeError), match=message):
        TrainingConfig.from_yaml(path, changes)


def test_a_value_that_is_no_yaml_is_wrong_usage(tmp_path):
    result = CliRunner().invoke(app, ["train", str(tmp_path / "x.yaml"), "--set", "data.train=[speech"])
    assert result.exit_code == 2 and "no YAML" in result.stderr
