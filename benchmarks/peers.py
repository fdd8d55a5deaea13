"""The implementations of Mimi behind one interface, on the same weights."""

import copy
import tempfile
from pathlib import Path

import torch
from transformers.models.mimi.configuration_mimi import MimiConfig as NativeConfig
from transformers.models.mimi.modeling_mimi import MimiModel as NativeModel

FRAME = 1920
RATE = 24_000


def make_checkpoints(folder: Path, model: str | Path | None = None) -> tuple[str | Path, Path]:
    """A model twice: a folder, and Kyutai's format in `folder`.

    model: its folder; by default seeded random weights of the published size are made, in which every part matters.
    """
    from mimi_hf.conversion import export_checkpoint

    original = folder / "original.safetensors"
    source = model or make_seeded(folder / "mimi")
    export_checkpoint(source, original)
    return source, original


def make_seeded(folder: Path) -> Path:
    """Seeded random weights of the published size, written to a folder."""
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
    model.save_pretrained(folder)
    return folder


def make_audio(samples: int, batch: int = 1, recording: torch.Tensor | None = None) -> torch.Tensor:
    """Tensor, shape = (batch, 1, samples): speech, or something like it.

    A recording of shape (N,) is repeated, and begins elsewhere in each row. Without one, there are gliding harmonics
    and noise in syllables.
    """
    if recording is not None:
        starts = torch.arange(batch)[:, None] * (len(recording) // batch)
        return recording[(starts + torch.arange(samples)) % len(recording)][:, None]
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(samples) / RATE
    phase = 2 * torch.pi * torch.cumsum((150 + 30 * torch.sin(2 * time)) / RATE, 0)
    voice = sum(torch.sin(phase * k) / k for k in range(1, 10))
    noise = torch.randn(batch, 1, samples, generator=generator)
    return (0.2 * voice + 0.05 * noise) * (0.55 + 0.45 * torch.sin(time * 20))


class UnavailableError(Exception):
    """An implementation does not do this; the message says why."""


class Implementation:
    """One implementation of Mimi.

    name: how tables call it.
    parts: of the benchmark that it takes part in: "start", "offline", "live".
    import_code: what a program runs before it can load a model.
    gigabytes_per_minute: memory that a minute of audio takes offline in single precision, where that is much.

    Audio is a Tensor, shape = (B, 1, N); codes are a Tensor, shape = (B, K, F). `encode_stream(sessions)` and
    `decode_stream(sessions)` begin a stream and give the function that takes its next frame.
    """

    name: str
    parts = ("start", "offline", "live")
    import_code: str
    gigabytes_per_minute = 0.0


class Ours(Implementation):
    name = "mimi_hf"
    import_code = "from mimi_hf import MimiModel"

    def __init__(self, checkpoints, num_quantizers, dtype, device="cpu"):
        from mimi_hf import MimiModel

        self.model = MimiModel.from_pretrained(checkpoints[0], dtype=dtype).to(device)
        self.num_quantizers = num_quantizers

    def encode(self, audio):
        return self.model.encode(audio, num_quantizers=self.num_quantizers).audio_codes

    def decode(self, codes):
        return self.model.decode(codes).audio_values

    def encode_stream(self, sessions):
        return self.model.encoder_stream(sessions, self.num_quantizers).push

    def decode_stream(self, sessions):
        return self.model.decoder_stream(sessions).push


class OneByOne(Ours):
    """Each session in a stream of its own, one pushed after the other: what sharing a stream saves."""

    name = "mimi_hf, one by one"
    parts = ("live",)

    def encode_stream(self, sessions):
        return self._apart(sessions, super().encode_stream)

    def decode_stream(self, sessions):
        return self._apart(sessions, super().decode_stream)

    @staticmethod
    def _apart(sessions, begin):
        if sessions == 1:
            raise UnavailableError("one session has a stream of its own anyway")
        pushes = [begin(1) for _ in range(sessions)]
        return lambda x: torch.cat([push(row) for push, row in zip(pushes, x.split(1), strict=True)])


class Compiled(Ours):
    """With [`compile_for_streaming`]."""

    name = "mimi_hf compiled"
    parts = ("live",)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.model.compile_for_streaming()


class Int8(Ours):
    """8-bit weights, activations in bfloat16, compiled: beside the others in single precision."""

    name = "mimi_hf int8 compiled"
    parts = ("live",)

    def __init__(self, checkpoints, num_quantizers, dtype, device="cpu"):
        from mimi_hf import MimiInt8Config, MimiModel

        if dtype != torch.float32:
            raise UnavailableError("it runs beside the others in float32")
        model = MimiModel.from_pretrained(checkpoints[0], dtype=torch.bfloat16, quantization_config=MimiInt8Config())
        self.model = model.to(device).compile_for_streaming()
        self.num_quantizers = num_quantizers


class Native(Implementation):
    name = "transformers"
    import_code = "from transformers.models.mimi.modeling_mimi import MimiModel"
    gigabytes_per_minute = 1.8

    def __init__(self, checkpoints, num_quantizers, dtype, device="cpu"):
        self.model = NativeModel.from_pretrained(checkpoints[0], dtype=dtype).to(device)
        self.num_quantizers = num_quantizers

    def encode(self, audio):
        return self.model.encode(audio.to(self.model.dtype), num_quantizers=self.num_quantizers).audio_codes

    def decode(self, codes):
        return self.model.decode(codes).audio_values

    def encode_stream(self, sessions):
        caches = {}

        def step(audio):
            out = self.model.encode(
                audio.to(self.model.dtype), num_quantizers=self.num_quantizers, use_streaming=True, **caches
            )
            caches.update(caches_of(out))
            return out.audio_codes

        return step

    def decode_stream(self, sessions):
        """Its transformer streams, its convolutions do not: what comes out is not the audio of the whole."""
        caches = {}

        def step(codes):
            out = self.model.decode(codes, use_cache=True, **caches)
            caches.update(caches_of(out))
            return out.audio_values

        return step


def caches_of(output) -> dict:
    """What native's next call takes, under the names that its version has."""
    return {name: value for name, value in output.items() if "cache" in name or "past_key_values" in name}


def kyutai_config(config) -> dict:
    """What moshi's loader takes for a model of the sizes of a [`MimiConfig`]."""
    from moshi.models import loaders

    width = {"input_dimension": config.hidden_size}
    sizes = {
        "seanet": {
            "dimension": config.hidden_size,
            "n_filters": config.num_filters,
            "ratios": config.upsampling_ratios,
        },
        "quantizer": {
            **width,
            "output_dimension": config.hidden_size,
            "dimension": config.codebook_dim,
            "n_q": config.num_quantizers,
            "bins": config.codebook_size,
        },
        "transformer": {
            **width,
            "output_dimensions": [config.hidden_size],
            "d_model": config.hidden_size,
            "num_heads": config.num_attention_heads,
            "num_layers": config.num_hidden_layers,
            "context": config.sliding_window,
            "dim_feedforward": config.intermediate_size,
        },
    }
    published = loaders._mimi_config
    return {**published, **{part: {**published[part], **changes} for part, changes in sizes.items()}}


class Kyutai(Implementation):
    name = "moshi"
    import_code = "from moshi.models import loaders"
    gigabytes_per_minute = 1.8

    def __init__(self, checkpoints, num_quantizers, dtype, device="cpu"):
        from moshi.models import loaders

        from mimi_hf import MimiConfig

        sizes = kyutai_config(MimiConfig.from_pretrained(checkpoints[0]))
        self.model = loaders.get_mimi(checkpoints[1], sizes, device=device, num_codebooks=num_quantizers).to(dtype)
        self.dtype = dtype

    def encode(self, audio):
        return self.model.encode(audio.to(self.dtype))

    def decode(self, codes):
        return self.model.decode(codes)

    def encode_stream(self, sessions):
        model = copy.deepcopy(self.model)  # the stream is a state of the model
        model.streaming_forever(sessions)
        return lambda audio: model.encode(audio.to(self.dtype))

    def decode_stream(self, sessions):
        model = copy.deepcopy(self.model)
        model.streaming_forever(sessions)
        return model.decode


class Candle(Implementation):
    name = "rustymimi"
    import_code = "import rustymimi"

    def __init__(self, checkpoints, num_quantizers, dtype, device="cpu"):
        import rustymimi

        if dtype != torch.float32 or torch.device(device).type != "cpu":
            raise UnavailableError("rustymimi runs in float32 alone, on a CPU alone")
        if NativeConfig.from_pretrained(checkpoints[0]).hidden_size != NativeConfig().hidden_size:
            raise UnavailableError("rustymimi runs models of the published size alone")
        self.make = lambda: rustymimi.Tokenizer(str(checkpoints[1]), num_codebooks=num_quantizers)
        self.model = self.make()

    def encode(self, audio):
        return torch.from_numpy(self.model.encode(audio.numpy()).astype("int64"))

    def decode(self, codes):
        return torch.from_numpy(self.model.decode(codes.numpy().astype("uint32")))

    def encode_stream(self, sessions):
        model = self._one(sessions)
        return lambda audio: torch.from_numpy(model.encode_step(audio.numpy()).astype("int64"))

    def decode_stream(self, sessions):
        model = self._one(sessions)
        return lambda codes: torch.from_numpy(model.decode_step(codes.numpy().astype("uint32")))

    def _one(self, sessions):
        if sessions > 1:
            raise UnavailableError("rustymimi streams one session")
        return self.make()


# Ours, of which the first is what agreement is measured against; and what each of them is compared with. A further way
# to run ours is a subclass of `Ours` here, with a name, and with `parts` where it does not take part in all.
VARIANTS = (Ours, Compiled, Int8, OneByOne)
PEERS = (Native, Kyutai, Candle)


def checkpoint_folder():
    """A temporary folder for the checkpoints of a run."""
    return tempfile.TemporaryDirectory(prefix="mimi-hf-benchmark-")
