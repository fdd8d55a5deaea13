"""A language model of speech: recordings become codes, a small Llama learns them, and what it makes up becomes audio.

    python examples/speech_lm.py my-recordings generated.wav --steps 300

A recording becomes one sequence of ids: the K codes of each frame, one frame after the other. Codebook k has its own V
ids, from k * V on; three more ids begin a sequence, end it, and pad a batch.

transformers' `Trainer` trains a Llama from scratch on them. While it generates, it may only choose ids of the codebook
whose turn it is, so that every sequence decodes. The defaults take about a minute on two cores, enough to see the loss
fall. For speech take hours of recordings, `--model kyutai/mimi`, a larger Llama and a GPU.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, Trainer, TrainingArguments

from mimi_hf import AudioCodesCollator, AudioTokenizer, MimiModel, mimi_tiny_path, unflatten_codes
from mimi_hf.audio import write_audio

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg"}
TRAINING = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "save_strategy": "no", "report_to": "none"}
SIZE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}


class Ids:
    """The ids of the language model: K codebooks of V codes, then the three special ids."""

    def __init__(self, num_quantizers: int, codebook_size: int):
        self.num_quantizers, self.codebook_size = num_quantizers, codebook_size
        self.codes = num_quantizers * codebook_size
        self.begin, self.end, self.pad = range(self.codes, self.codes + 3)
        self.collator = AudioCodesCollator(
            codebook_size=codebook_size, num_quantizers=num_quantizers, flatten=True, offset=True, pad_id=self.pad
        )

    def collate(self, examples: Sequence[Mapping]) -> dict[str, Tensor]:
        """A batch of sequences: begin, the codes, end, padding."""
        batch = self.collator(examples)
        ends = batch["attention_mask"].sum(dim=1, keepdim=True) + 1  # (B, 1), the place of `end`
        ids = F.pad(batch["input_ids"], (1, 1), value=self.pad).scatter(1, ends, self.end)
        ids[:, 0] = self.begin
        mask = torch.arange(ids.shape[1]) <= ends
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}

    def to_codes(self, ids: Tensor) -> Tensor:
        """Codes (K, F) of a sequence; a frame that is not complete is left out."""
        ids = ids[ids < self.codes]
        whole = len(ids) // self.num_quantizers * self.num_quantizers
        return unflatten_codes(ids[:whole], self.num_quantizers, offset=self.codebook_size)


class OneCodebook(LogitsProcessor):
    """Allows the ids of the codebook whose turn it is, and the end between frames."""

    def __init__(self, ids: Ids):
        self.ids = ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        codebook = (input_ids.shape[1] - 1) % self.ids.num_quantizers  # the first id is `begin`
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        allowed[:, codebook * self.ids.codebook_size : (codebook + 1) * self.ids.codebook_size] = True
        allowed[:, self.ids.end] = codebook == 0
        return scores.masked_fill(~allowed, -torch.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="a folder of audio files")
    parser.add_argument("output", nargs="?", default="generated.wav", help="the audio that the model makes up")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=2.0, help="longest sequence: longer recordings are cut")
    parser.add_argument("--num-quantizers", type=int, default=4, help="codebooks")
    parser.add_argument("--model", default=str(mimi_tiny_path()), help="for example kyutai/mimi")
    parser.add_argument("--lm", default="speech-lm", help="the folder for the language model")
    args = parser.parse_args()

    mimi = MimiModel.from_pretrained(args.model, dtype=torch.float32)
    ids = Ids(args.num_quantizers, mimi.config.codebook_size)
    files = sorted(str(path) for path in args.recordings.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        parser.error(f"{args.recordings} has no audio files.")
    recordings = Dataset.from_dict({"audio": files}).map(AudioTokenizer(mimi, args.num_quantizers), batched=True)
    longest = round(args.seconds * mimi.config.frame_rate)
    cut = [piece for codes in recordings["audio_codes"] for piece in torch.tensor(codes).split(longest, dim=1)]
    sequences = Dataset.from_dict({"audio_codes": [piece.tolist() for piece in cut]})
    print(f"{len(files)} recordings, {len(sequences)} sequences of up to {longest} frames")

    torch.manual_seed(0)
    special = {"bos_token_id": ids.begin, "eos_token_id": ids.end, "pad_token_id": ids.pad}
    limits = {"vocab_size": ids.codes + 3, "max_position_embeddings": longest * args.num_quantizers + 2}
    lm = LlamaForCausalLM(LlamaConfig(**limits, **special, **SIZE))
    options = TrainingArguments(
        args.lm, max_steps=args.steps, logging_steps=max(1, args.steps // 10), remove_unused_columns=False, **TRAINING
    )
    Trainer(lm, options, ids.collate, train_dataset=sequences).train()
    lm.save_pretrained(args.lm)

    generated = lm.eval().generate(
        torch.tensor([[ids.begin]], device=lm.device),
        do_sample=True,
        min_new_tokens=args.num_quantizers,
        max_new_tokens=longest * args.num_quantizers,
        logits_processor=[OneCodebook(ids)],
    )
    codes = ids.to_codes(generated[0].cpu())
    with torch.no_grad():
        audio = mimi.decode(codes[None]).audio_values[0]
    write_audio(args.output, audio, mimi.config.sampling_rate)
    print(f"{codes.shape[1]} frames generated: {args.output}")


if __name__ == "__main__":
    main()
