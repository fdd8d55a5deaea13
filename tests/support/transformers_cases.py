"""transformers' shared tests on Mimi and on the models that embed it. Run by `transformers_suite`.

`MIMI_SIDE` says whose Mimi: "native" for that of transformers, "ours" for that of this package.
"""

import os
import unittest
from typing import ClassVar

import numpy as np
import torch
from transformers import (
    CsmConfig,
    CsmForConditionalGeneration,
    KyutaiSpeechToTextConfig,
    KyutaiSpeechToTextForConditionalGeneration,
    MoshiConfig,
    MoshiForConditionalGeneration,
    set_seed,
)
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin

from .tiny import FRAME, TINY

SIDE = os.environ["MIMI_SIDE"]
if SIDE == "ours":
    from mimi_hf import MimiConfig, MimiFeatureExtractor, MimiModel  # which registers them
else:
    from transformers import EncodecFeatureExtractor as MimiFeatureExtractor
    from transformers.models.mimi.configuration_mimi import MimiConfig
    from transformers.models.mimi.modeling_mimi import MimiModel

BATCH, LENGTH, CODEBOOKS = 2, 7, TINY["num_quantizers"]
CODEC = {**TINY, "model_type": "mimi"}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}


class ModelCase(ModelTesterMixin):
    """One kind of model. It is its own model tester, too: what the shared tests ask for a config and inputs."""

    batch_size, seq_length, is_training = BATCH, LENGTH, True
    hidden_size, num_hidden_layers, num_attention_heads = (
        SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
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
    is_encoder_decoder = True
    test_resize_embeddings = False

    def get_config(self):
        return MimiConfig(**TINY)

    def get_inputs(self):
        return {"input_values": torch.randn(BATCH, 1, 20 * FRAME)}


class CsmTest(ModelCase, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (CsmForConditionalGeneration,)

    def get_config(self):
        sizes = {**SIZES, "intermediate_size": 32, "vocab_size": 67, "num_codebooks": CODEBOOKS}
        return CsmConfig(
            **sizes,
            text_vocab_size=99,
            audio_token_id=90,
            audio_eos_token_id=91,
            bos_token_id=1,
            pad_token_id=0,
            codebook_eos_token_id=0,
            codebook_pad_token_id=66,
            depth_decoder_config={**sizes, "backbone_hidden_size": 32, "max_position_embeddings": LENGTH},
            codec_config=CODEC,
        )

    def get_inputs(self):
        ids = torch.tensor([[1, 90, 90, 90, 90, 91, 2]]).repeat(BATCH, 1)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "input_values": torch.randn(BATCH, 1, 4 * FRAME),
            "input_values_cutoffs": torch.full((BATCH, 1), 4 * FRAME),
        }

    def get_labels(self, inputs):
        return {"labels": inputs["input_ids"].clamp(max=66)}


class MoshiTest(ModelCase, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (MoshiForConditionalGeneration,)
    additional_model_inputs = ("user_input_values", "moshi_input_values")

    def get_config(self):
        sizes = {**SIZES, "ffn_dim": 64, "vocab_size": 99, "audio_vocab_size": 65, "num_codebooks": CODEBOOKS}
        return MoshiConfig(**sizes, audio_encoder_config=CODEC, depth_decoder_config=sizes)

    def get_inputs(self):
        ids = torch.randint(1, 98, (BATCH, LENGTH))
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "user_input_values": torch.randn(BATCH, 1, LENGTH * FRAME),
            "moshi_input_values": torch.randn(BATCH, 1, LENGTH * FRAME),
        }

    def get_labels(self, inputs):
        return {"text_labels": inputs["input_ids"]}


class SpeechToTextTest(ModelCase, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (KyutaiSpeechToTextForConditionalGeneration,)

    def get_config(self):
        return KyutaiSpeechToTextConfig(
            **SIZES,
            ffn_dim=64,
            codebook_vocab_size=65,
            vocab_size=99,
            num_codebooks=CODEBOOKS,
            frame_size=FRAME,
            codec_config=CODEC,
            audio_bos_token_id=64,
            audio_pad_token_id=63,
            pad_token_id=3,
            bos_token_id=98,
            eos_token_id=None,
        )

    def get_inputs(self):
        ids = torch.randint(1, 60, (BATCH, LENGTH, CODEBOOKS + 1))
        return {"input_ids": ids, "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.int64)}

    def get_labels(self, inputs):
        return {"labels": inputs["input_ids"][..., 0]}


class ConfigCase:
    """One kind of config: each check of `ConfigTester` becomes a test."""

    model_case: type[ModelCase]
    config_class: type
    arguments: dict

    def setUp(self):
        self.model_tester = self.model_case()


for check in dir(ConfigTester):
    if check.startswith(("create_and_test_", "check_")):

        def run_check(self, check=check):
            has_text = self.model_case is not MimiTest
            getattr(ConfigTester(self, self.config_class, has_text_modality=has_text, **self.arguments), check)()

        setattr(ConfigCase, f"test_{check.removeprefix('create_and_test_').removeprefix('check_')}", run_check)


class MimiConfigTest(ConfigCase, unittest.TestCase):
    model_case, config_class = MimiTest, MimiConfig
    arguments: ClassVar = {**TINY, "head_dim": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}


class CsmConfigTest(ConfigCase, unittest.TestCase):
    model_case, config_class, arguments = CsmTest, CsmConfig, SIZES


class MoshiConfigTest(ConfigCase, unittest.TestCase):
    model_case, config_class, arguments = MoshiTest, MoshiConfig, SIZES


class SpeechToTextConfigTest(ConfigCase, unittest.TestCase):
    model_case, config_class, arguments = SpeechToTextTest, KyutaiSpeechToTextConfig, SIZES


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
