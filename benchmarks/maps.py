"""Tokenizing with `datasets`: `map` with transformers' own Mimi, and with ours."""

import time

import numpy as np
import peers
import torch
from clips import Clips, read_clip

QUANTIZERS, BATCH = 8, 8
OURS, NATIVE = "map, AudioTokenizer", "map, transformers"


class NativeMap:
    """What a user of transformers and `datasets` writes first: decode, pad to a batch, encode, cut."""

    def __init__(self, checkpoint, device: str):
        from transformers import EncodecFeatureExtractor
        from transformers.models.mimi.modeling_mimi import MimiModel

        self.model = MimiModel.from_pretrained(checkpoint).eval().to(device)
        self.extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=peers.RATE)

    def __call__(self, examples) -> dict:
        audio = [read_clip(path) for path in examples["audio"]]
        inputs = self.extractor(raw_audio=audio, sampling_rate=peers.RATE, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = self.model.encode(**inputs.to(self.model.device), num_quantizers=QUANTIZERS)
        codes = output.audio_codes.cpu().numpy().astype(np.uint16)
        frames = [-(-len(recording) // peers.FRAME) for recording in audio]
        return {"audio_codes": [row[:, :count] for row, count in zip(codes, frames, strict=True)]}


class Maps:
    """Both maps, on the same clips in the same order, with models that are loaded and warm.

    seconds: that each has taken so far.
    codes: that each has made so far: by the name of the clip, (K, F).
    """

    def __init__(self, checkpoint, device: str, clips: Clips):
        from datasets import disable_progress_bars

        from mimi_hf import AudioTokenizer

        disable_progress_bars()
        self.functions = {
            NATIVE: NativeMap(checkpoint, device),
            OURS: AudioTokenizer(str(checkpoint), num_quantizers=QUANTIZERS, device=device),
        }
        self.clips, self.seconds, self.codes = clips, dict.fromkeys(self.functions, 0.0), {}
        for kind, function in self.functions.items():
            function({"audio": [self._path(next(iter(clips.seconds)))]})  # what is made once and kept
            self.codes[kind] = {}

    def _path(self, name: str) -> str:
        return str(self.clips.folder / name)

    def measure(self, names: list[str]):
        """Send some of the clips through each map."""
        from datasets import Dataset

        for kind, function in self.functions.items():
            dataset = Dataset.from_dict({"audio": [self._path(name) for name in names]})
            # Hashing all weights of transformers' model is no part of the comparison.
            known = {"new_fingerprint": "native"} if kind == NATIVE else {}
            begin = time.perf_counter()
            rows = dataset.map(function, batched=True, batch_size=BATCH, load_from_cache_file=False, **known)
            self.seconds[kind] += time.perf_counter() - begin
            self.codes[kind].update(
                (name, np.array(codes)) for name, codes in zip(names, rows["audio_codes"], strict=True)
            )
