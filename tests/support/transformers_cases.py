"""transformers' shared tests on Mimi and on the models that embed it. Run by `transformers_suite`.

`MIMI_SIDE` says whose Mimi: "native" for that of transformers, "ours" for that of this package.
"""

import os
import unittest
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from transformers import set_seed
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin

from .composites import make_csm, make_moshi, make_speech_to_text
from .tiny import FRAME, TINY

SIDE = os.environ["MIMI_SIDE"]
if SIDE == "ours":
    from mimi_hf import MimiConfig, MimiFeatureExtractor, MimiModel  # which registers them
else:
    from transformers import EncodecFeatureExtractor as MimiFeatureExtractor
    from transformers.models.mimi.configuration_mimi import MimiConfig
    from transformers.models.mimi.modeling_mimi import MimiModel

BATCH, LENGTH = 2, 7


class ModelCase(ModelTesterMixin):
    """One kind of model. It is its own model tester, too: what the shared tests ask for a config and inputs."""

    batch_size, seq_length, is_training = BATCH, LENGTH, True
    test_all_params_have_gradient = False  # codes pass no gradient to what made them
    test_can_init_all_missing_weights_before_2023 = True  # no licence tells the age of our files

    def setUp(self):
        self.model_tester = self
        set_seed(0)

    def get_config(self):
        raise NotImplementedError

    def get_inputs(self):
        raise NotImplementedError

    def get_labels(self, inputs):
        return {}

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.get_inputs()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return {**inputs, **(self.get_labels(inputs) if return_labels else {})}

    def test_the_mimi_inside_is_that_of_the_side(self):
        for model_class in self.all_model_classes:
            kinds = {type(part) for part in model_class(self.get_config()).modules()}
            assert MimiModel in kinds
            assert {kind.__module__.split(".")[0] for kind in kinds if kind.__name__ == "MimiModel"} == {
                "mimi_hf" if SIDE == "ours" else "transformers"
            }


class MimiTest(ModelCase, unittest.TestCase):
    all_model_classes = (MimiModel,)
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    is_encoder_decoder = True
    test_resize_embeddings = False

    def get_config(self):
        return MimiConfig(**TINY)

    def get_inputs(self):
        return {"input_values": torch.randn(BATCH, 1, 20 * FRAME)}


class EmbeddingCase(ModelCase, GenerationTesterMixin):
    """One model of transformers that embeds Mimi."""

    hidden_size, num_hidden_layers, num_attention_heads = 32, 1, 2
    make: Callable[[], tuple]

    def get_config(self):
        return type(self).make()[1]


class CsmTest(EmbeddingCase, unittest.TestCase):
    make = make_csm
    all_model_classes = (make()[0],)

    def get_inputs(self):
        ids = torch.tensor([[1, 90, 90, 90, 90, 91, 2]]).repeat(BATCH, 1)
        audio = torch.randn(BATCH, 1, 4 * 1920)
        cutoffs = torch.full((BATCH, 1), audio.shape[2])
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "input_values": audio, "input_values_cutoffs": cutoffs}

    def get_labels(self, inputs):
        return {"labels": inputs["input_ids"].clamp(max=66)}


class MoshiTest(EmbeddingCase, unittest.TestCase):
    make = make_moshi
    all_model_classes = (make()[0],)
    additional_model_inputs = ("user_input_values", "moshi_input_values")

    def get_inputs(self):
        ids = torch.randint(1, 98, (BATCH, LENGTH))
        user, moshi = torch.randn(2, BATCH, 1, LENGTH * 1920)
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "user_input_values": user, "moshi_input_values": moshi}

    def get_labels(self, inputs):
        return {"text_labels": inputs["input_ids"]}


class SpeechToTextTest(EmbeddingCase, unittest.TestCase):
    make = make_speech_to_text
    all_model_classes = (make()[0],)

    def get_inputs(self):
        ids = torch.randint(1, 60, (BATCH, LENGTH, 1 + 8))  # text and codes
        return {"input_ids": ids, "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.int64)}

    def get_labels(self, inputs):
        return {"labels": inputs["input_ids"][..., 0]}


class ConfigCase:
    """One kind of config: each check of `ConfigTester` becomes a test."""

    model_case: type[ModelCase]
    arguments: ClassVar = {"hidden_size": 64, "num_hidden_layers": 3}

    def setUp(self):
        self.model_tester = self.model_case()


for check in dir(ConfigTester):
    if check.startswith(("create_and_test_", "check_")):

        def run_check(self, check=check):
            config_class, is_text = type(self.model_tester.get_config()), self.model_case is not MimiTest
            getattr(ConfigTester(self, config_class, has_text_modality=is_text, **self.arguments), check)()

        setattr(ConfigCase, f"test_{check.removeprefix('create_and_test_').removeprefix('check_')}", run_check)


class MimiConfigTest(ConfigCase, unittest.TestCase):
    model_case = MimiTest
    arguments: ClassVar = {**TINY, "head_dim": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}


class CsmConfigTest(ConfigCase, unittest.TestCase):
    model_case = CsmTest


class MoshiConfigTest(ConfigCase, unittest.TestCase):
    model_case = MoshiTest


class SpeechToTextConfigTest(ConfigCase, unittest.TestCase):
    model_case = SpeechToTextTest


class FeatureExtractorTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = MimiFeatureExtractor
    batch_size, feature_size = 4, 1
    min_seq_length, max_seq_length, seq_length_diff = 400, 2000, 400

    def setUp(self):
        self.feat_extract_tester = self

    def prepare_feat_extract_dict(self):
        return {"feature_size": 1, "padding_value": 0.0, "sampling_rate": 24_000, "return_attention_mask": True}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        random = np.random.default_rng(0)
        audio = [random.standard_normal(self.max_seq_length if equal_length else length) for length in lengths]
        return audio if numpify else [example.tolist() for example in audio]
