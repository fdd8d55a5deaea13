"""The implementations of Mimi behind one interface, on the same seeded weights of the published size."""

import tempfile
from pathlib import Path

import torch
from transformers.models.mimi.configuration_mimi import MimiConfig as NativeConfig
from transformers.models.mimi.modeling_mimi import MimiModel as NativeModel

FRAME = 1920
RATE = 24_000


def make_checkpoints(folder: Path) -> tuple[Path, Path]:
    """Seeded random weights of the published size in which every part matters: a folder, and Kyutai's format."""
    from mimi_hf.conversion import export_checkpoint

    torch.manual_seed(0)
    model = NativeModel(NativeConfig())
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale.scale"):
            parameter.data.fill_(0.3)  # 0.01, as initialized, would hide the transformers
    for name, buffer in model.named_buffers():
        if name.endswith("embed_sum"):
            buffer.copy_(torch.randn_like(buffer) * 0.3)
        elif name.endswith("cluster_usage"):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    model.save_pretrained(folder / "mimi")
    original = folder / "original.safetensors"
    export_checkpoint(folder / "mimi", original)
    return folder / "mimi", original


def make_audio(samples: int, batch: int = 1) -> torch.Tensor:
    """Gliding harmonics and noise in syllables: Tensor, shape = (batch, 1, samples)."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(samples) / RATE
    phase = 2 * torch.pi * torch.cumsum((150 + 30 * torch.sin(2 * time)) / RATE, 0)
    voice = sum(torch.sin(phase * k) / k for k in range(1, 10))
    noise = torch.randn(batch, 1, samples, generator=generator)
    return (0.2 * voice + 0.05 * noise) * (0.55 + 0.45 * torch.sin(time * 20))


class Ours:
    name = "mimi_hf"

    def __init__(self, folder, original, num_quantizers, dtype):
        from mimi_hf import MimiModel

        self.model = MimiModel.from_pretrained(folder, dtype=dtype)
        self.num_quantizers = num_quantizers

    def encode(self, audio):
        return self.model.encode(audio, num_quantizers=self.num_quantizers).audio_codes

    def decode(self, codes):
        return self.model.decode(codes).audio_values

    def encode_stream(self, batch):
        return self.model.encoder_stream(batch, self.num_quantizers).push

    def decode_stream(self, batch):
        return self.model.decoder_stream(batch).push


class Native:
    name = "transformers"

    def __init__(self, folder, original, num_quantizers, dtype):
        self.model = NativeModel.from_pretrained(folder, dtype=dtype)
        self.num_quantizers = num_quantizers

    def encode(self, audio):
        return self.model.encode(audio.to(self.model.dtype), num_quantizers=self.num_quantizers).audio_codes

    def decode(self, codes):
        return self.model.decode(codes).audio_values

    def encode_stream(self, batch):
        caches = {}

        def step(audio):
            out = self.model.encode(
                audio.to(self.model.dtype), num_quantizers=self.num_quantizers, use_streaming=True, **caches
            )
            caches.update(encoder_past_key_values=out.encoder_past_key_values, padding_cache=out.padding_cache)
            return out.audio_codes

        return step

    def decode_stream(self, batch):
        """Its transformer streams, its convolutions do not: what comes out is not the audio of the whole."""
        caches = {}

        def step(codes):
            out = self.model.decode(codes, use_cache=True, **caches)
            caches.update(decoder_past_key_values=out.decoder_past_key_values)
            return out.audio_values

        return step


class Kyutai:
    name = "moshi"

    def __init__(self, folder, original, num_quantizers, dtype):
        from moshi.models import loaders

        self.load = lambda: loaders.get_mimi(original, num_codebooks=num_quantizers).to(dtype)
        self.model = self.load()
        self.dtype = dtype

    def encode(self, audio):
        return self.model.encode(audio.to(self.dtype))

    def decode(self, codes):
        return self.model.decode(codes)

    def encode_stream(self, batch):
        model = self.load()
        model.streaming_forever(batch)
        return lambda audio: model.encode(audio.to(self.dtype))

    def decode_stream(self, batch):
        model = self.load()
        model.streaming_forever(batch)
        return model.decode


class Candle:
    name = "rustymimi"

    def __init__(self, folder, original, num_quantizers, dtype):
        import rustymimi

        if dtype != torch.float32:
            raise ImportError("rustymimi runs in float32 alone")
        self.make = lambda: rustymimi.Tokenizer(str(original), num_codebooks=num_quantizers)
        self.model = self.make()

    def encode(self, audio):
        return torch.from_numpy(self.model.encode(audio.numpy()).astype("int64"))

    def decode(self, codes):
        return torch.from_numpy(self.model.decode(codes.numpy().astype("uint32")))

    def encode_stream(self, batch):
        if batch > 1:
            raise ImportError("rustymimi streams one session")
        model = self.make()
        return lambda audio: torch.from_numpy(model.encode_step(audio.numpy()).astype("int64"))

    def decode_stream(self, batch):
        if batch > 1:
            raise ImportError("rustymimi streams one session")
        model = self.make()
        return lambda codes: torch.from_numpy(model.decode_step(codes.numpy().astype("uint32")))


PEERS = (Ours, Native, Kyutai, Candle)


def checkpoint_folder():
    """A temporary folder for the checkpoints of a run."""
    return tempfile.TemporaryDirectory(prefix="mimi-hf-benchmark-")
