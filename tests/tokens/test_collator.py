import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mimi_hf import AudioCodesCollator, apply_delay, flatten_codes, undo_delay, unflatten_codes

V = 64


def make_examples(lengths, codebooks=4, seed=0):
    random = np.random.default_rng(seed)
    return [{"audio_codes": random.integers(0, V, (codebooks, frames), dtype=np.uint16)} for frames in lengths]


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(0, 9), delay=st.lists(st.integers(0, 4), min_size=1, max_size=5), batch=st.integers(0, 2))
def test_delay_moves_each_codebook_and_is_undone(frames, delay, batch):
    codes = torch.randint(0, V, (batch, len(delay), frames))
    delayed = apply_delay(codes, delay, fill=V)
    assert delayed.shape == (batch, len(delay), frames + max(delay))
    assert torch.equal(undo_delay(delayed, delay), codes)
    for k, shift in enumerate(delay):
        outside = torch.cat([delayed[:, k, :shift], delayed[:, k, shift + frames :]], dim=1)
        assert (outside == V).all()


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(0, 9), codebooks=st.integers(1, 5), offset=st.sampled_from([0, V]))
def test_flattened_codes_are_in_order_of_time_and_come_back(frames, codebooks, offset):
    codes = torch.randint(0, V, (2, codebooks, frames))
    ids = flatten_codes(codes, offset)
    assert torch.equal(unflatten_codes(ids, codebooks, offset), codes)
    for f in range(frames):
        for k in range(codebooks):
            assert torch.equal(ids[:, f * codebooks + k], codes[:, k, f] + k * offset)
    if offset:
        assert torch.equal(ids // V, torch.arange(codebooks).repeat(frames).expand_as(ids))


def test_part_of_a_generation_is_undone_as_far_as_it_is_whole():
    codes = torch.randint(0, V, (3, 5))
    delayed = apply_delay(codes, [0, 1, 2], fill=V)
    assert torch.equal(undo_delay(delayed[:, :4], [0, 1, 2]), codes[:, :2])
    assert undo_delay(delayed[:, :1], [0, 1, 2]).shape == (3, 0)
    with pytest.raises(ValueError, match="Cut it to 6"):
        unflatten_codes(torch.arange(8), 3)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    delay=st.sampled_from([None, 0, 2, range(4), [0, 1, 1, 1], [3, 0, 0, 1]]),
    flatten=st.booleans(),
    offset=st.booleans(),
)
def test_batches_give_back_the_codes_and_mark_the_rest(lengths, delay, flatten, offset):
    offset = flatten and offset
    examples = make_examples(lengths)
    collator = AudioCodesCollator(codebook_size=V, delay=delay, flatten=flatten, offset=offset, labels=True)
    batch = collator(examples)
    for example, codes in zip(examples, collator.restore(batch, num_quantizers=4), strict=True):
        np.testing.assert_array_equal(codes, example["audio_codes"])
    ids, labels, mask = batch["input_ids" if flatten else "audio_codes"], batch["labels"], batch["attention_mask"]
    assert ids.dtype == labels.dtype == mask.dtype == torch.int64
    free = V * (4 if offset else 1)
    assert torch.equal(labels == -100, ids == free)
    assert torch.equal(labels[labels != -100], ids[ids < free])
    # As many labels as codes; nothing real lies where the mask is 0, something in every step where it is 1.
    assert (labels != -100).flatten(1).sum(dim=1).tolist() == [4 * frames for frames in lengths]
    steps = mask[:, ::4] if flatten else mask
    real = (unflatten_codes(labels, 4) if flatten else labels) != -100
    assert not (real & (steps == 0)[:, None]).any()
    assert mask.shape == (ids.shape[0], ids.shape[-1])
    shift = 0 if delay is None else delay if isinstance(delay, int) else max(delay)
    assert steps.sum(dim=1).tolist() == [frames + shift if frames else 0 for frames in lengths]


def test_an_example_is_the_same_in_any_batch():
    examples = make_examples([5, 2, 9])
    collator = AudioCodesCollator(codebook_size=V, delay=range(4), flatten=True, offset=True)
    alone, together = collator(examples[:1]), collator(examples)
    length = alone["input_ids"].shape[1]
    assert torch.equal(together["input_ids"][0, :length], alone["input_ids"][0])
    assert (together["input_ids"][0, length:] == 4 * V).all()
    assert together["attention_mask"][0].sum() == length


def test_lists_arrays_and_tensors_are_the_same_and_codebooks_can_be_fewer():
    (example,) = make_examples([3])
    codes = example["audio_codes"]
    collator = AudioCodesCollator(codebook_size=V, num_quantizers=2, pad_id=99)
    expected = torch.from_numpy(codes[:2].astype(np.int64))
    for form in (codes, codes.tolist(), torch.from_numpy(codes.astype(np.int64))):
        assert torch.equal(collator([{"audio_codes": form}])["audio_codes"][0], expected)
    assert (collator(make_examples([3, 1]))["audio_codes"][1, :, 1:] == 99).all()


def test_as_collate_fn_of_a_loader_with_workers():
    examples = make_examples([3, 5, 2, 7])
    collator = pickle.loads(pickle.dumps(AudioCodesCollator(codebook_size=V, delay=1)))
    loader = DataLoader(examples, batch_size=2, collate_fn=collator, num_workers=1)
    restored = [codes for batch in loader for codes in collator.restore(batch)]
    assert [codes.tolist() for codes in restored] == [example["audio_codes"].tolist() for example in examples]


def test_a_language_model_trains_on_it(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    collator = AudioCodesCollator(codebook_size=V, delay=range(4), flatten=True, offset=True, labels=True)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4 * V + 1, **sizes, pad_token_id=4 * V))
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, remove_unused_columns=False, report_to=[], use_cpu=True
    )
    before = model.lm_head.weight.detach().clone()
    result = Trainer(model, arguments, train_dataset=make_examples([6, 3, 8]), data_collator=collator).train()
    assert np.isfinite(result.training_loss)
    assert not torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize(
    ("arguments", "examples", "message"),
    [
        ({"offset": True}, None, "needs flatten=True"),
        ({"delay": [0, -1]}, None, "not negative"),
        ({"delay": 1.5}, None, "whole numbers"),
        ({"num_quantizers": 0}, None, "at least 1"),
        ({}, [], "at least one"),
        ({"pad_id": 63}, make_examples([2]), "pad_id=63 is also a code.*Give 64"),
        ({"delay": [0, 1]}, make_examples([2]), "of 2 codebooks, but there are 4"),
        ({"num_quantizers": 5}, make_examples([2]), "example 0 are of 4 codebooks"),
        ({"codebook_size": 2}, make_examples([9]), "entries are 0 to 1"),
        ({}, make_examples([2]) + make_examples([2], codebooks=3), "3, 4 codebooks.*num_quantizers=3"),
        ({}, [{"audio": 1}], "Example 0 has no 'audio_codes'.*remove_unused_columns"),
        ({}, [{"audio_codes": [[0.5]]}], "example 0 are float64"),
        ({}, [{"audio_codes": None}], "example 0 are object"),
    ],
)
def test_mistakes_are_explained(arguments, examples, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AudioCodesCollator(**{"codebook_size": V, **arguments})(examples)


def test_a_flattened_batch_needs_the_number_of_codebooks():
    collator = AudioCodesCollator(codebook_size=V, flatten=True)
    with pytest.raises(ValueError, match="Give num_quantizers"):
        collator.restore(collator(make_examples([2])))
