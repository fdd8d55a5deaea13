"""Benchmark of a model: its offline speed and live latency, compared with the rates that the machine can reach."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .inference.timing import describe_machine, synchronize
from .modeling_mimi import MimiModel

GIGA = 1e9


# Times


def take_turns(
    calls: dict[str, Callable], repeats: int, warmup: int = 1, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Seconds that each call takes in each of `repeats` turns, after `warmup` turns that do not count.

    The calls take turns, since machines speed up and slow down. Work queued on a GPU is waited for.

    Example:
        >>> times = take_turns({"sum": lambda: sum(range(100)), "nothing": lambda: None}, repeats=3)
        >>> {name: len(seconds) for name, seconds in times.items()}
        {'sum': 3, 'nothing': 3}
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            synchronize(device)
            begin = time.perf_counter()
            call()
            synchronize(device)
            if turn >= warmup:
                times[name].append(time.perf_counter() - begin)
    return times


def medians(times: dict[str, list[float]], scale: float = 1.0) -> dict[str, float]:
    """The median of each list of seconds, times `scale`."""
    return {name: scale * statistics.median(values) for name, values in times.items()}


def ratios(times: dict[str, list[float]], reference: str) -> dict[str, float]:
    """How many times as long as `reference` each of the others takes: the median of the ratios turn by turn.

    Example:
        >>> ratios({"ours": [1.0, 2.0], "theirs": [3.0, 6.0]}, "ours")
        {'theirs': 3.0}
    """
    return {
        name: statistics.median(theirs / mine for theirs, mine in zip(values, times[reference], strict=True))
        for name, values in times.items()
        if name != reference
    }


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest of the values that `percent` % of them do not exceed.

    Example:
        >>> percentile(range(1, 201), 99)
        198
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


# The machine at its best


@dataclass(frozen=True)
class Roofline:
    """The rates that the machine can reach.

    gemm: GFLOP/s of a large square matrix product, by dtype ("float32", …).
    bandwidth: GB/s of reading memory, from a buffer larger than any cache.
    """

    gemm: dict[str, float]
    bandwidth: float


@torch.inference_mode()
def measure_roofline(
    device: torch.device | str = "cpu",
    dtypes: Iterable[str] = ("float32", "bfloat16"),
    sizes: Iterable[int] | None = None,
    megabytes: int = 512,
    repeats: int = 5,
) -> Roofline:
    """Measure both rates: the median over `repeats` of each way to try, and the best of these.

    Args:
        device: where.
        dtypes: of the products, names of torch's dtypes.
        sizes: rows and columns of the products; 1024 and 2048 by default, 4096 and 8192 on a GPU.
        megabytes: of the buffer that is read.
        repeats: counted turns.
    """
    sizes = sizes or ((4096, 8192) if torch.device(device).type == "cuda" else (1024, 2048))
    gemm = {dtype: max(_gemm_rate(size, dtype, device, repeats) for size in sizes) for dtype in dict.fromkeys(dtypes)}
    return Roofline(gemm, _bandwidth(megabytes, device, repeats))


def _gemm_rate(size: int, dtype: str, device, repeats: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    seconds = medians(take_turns({"product": lambda: a @ b}, repeats, device=device))["product"]
    return 2 * size**3 / seconds / GIGA


def _bandwidth(megabytes: int, device, repeats: int) -> float:
    rows = torch.ones(megabytes * 250_000 // 8192, 8192, device=device)  # float32
    vector = torch.ones(8192, device=device)
    # Which of these is fastest depends on the processor and its BLAS; each reads every byte once.
    calls = {"sum": rows.sum, "largest": rows.amax, "matrix-vector product": lambda: rows @ vector}
    return rows.nbytes / min(medians(take_turns(calls, repeats, device=device)).values()) / GIGA


# The work


@dataclass(frozen=True)
class Work:
    """The least work of one frame in one direction.

    operations: floating-point operations per frame and session, two per multiply-add, of each part of the codec.
        Products alone: activations, norms and sums are a few percent beside them.
    weight_bytes: read once per step, however many sessions share it.
    state_bytes: cached keys and values, read per step and session.
    """

    operations: dict[str, int]
    weight_bytes: int
    state_bytes: int

    def offline(self, frames: float, batch: int = 1) -> dict[str, float]:
        """Operations and bytes to read for `frames` frames of each of `batch` rows: weights need no second reading."""
        return {"operations": frames * batch * sum(self.operations.values()), "bytes": self.weight_bytes}

    def live(self, sessions: int = 1) -> dict[str, float]:
        """Operations and bytes to read for one frame of each session."""
        return {
            "operations": sessions * sum(self.operations.values()),
            "bytes": self.weight_bytes + sessions * self.state_bytes,
        }


def count_work(model: MimiModel, task: str, num_quantizers: int | None = None) -> Work:
    """Count the work of a model from the shapes of its layers.

    Args:
        model: as loaded; its dtype decides on the bytes.
        task: "encode" or "decode".
        num_quantizers: codebooks in use; all by default.
    """
    config, quantizer = model.config, model.quantizer
    levels = num_quantizers or config.num_quantizers
    half = "encoder" if task == "encode" else "decoder"
    seanet, transformer = getattr(model, half), getattr(model, f"{half}_transformer")
    resample = model.downsample if task == "encode" else model.upsample
    used = (config.num_semantic_quantizers, max(0, levels - config.num_semantic_quantizers))
    residuals = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
    ends = [residual.input_proj if task == "encode" else residual.output_proj for residual in residuals]
    projections = [end for end, count in zip(ends, used, strict=True) if count and end is not None]
    steps = config.latent_stride  # transformer steps per frame
    width = config.num_attention_heads * config.head_dim
    entries = levels * config.codebook_size * config.codebook_dim if task == "encode" else 0
    products = {
        "seanet": _products(seanet, config.frame_size if task == "encode" else steps),
        # Scores and sums over a window that is full, as it is from ten seconds on.
        "transformer": _products(transformer, steps)
        + steps * config.num_hidden_layers * 2 * config.sliding_window * width,
        "resampling": 0 if resample is None else _products(resample, steps if task == "encode" else 1),
        "quantizer": sum(_products(projection, 1) for projection in projections) + entries,
    }
    modules = [seanet, transformer, *projections, *([] if resample is None else [resample])]
    weights = sum(weight.nbytes for module in modules for weight in module.parameters())
    cached = 2 * config.num_hidden_layers * (config.sliding_window - 1) * config.num_key_value_heads * config.head_dim
    # Codebooks are searched in single precision; decoding looks up a row of each, which is next to nothing.
    return Work(
        {part: 2 * count for part, count in products.items()},
        weights + 4 * entries,
        cached * model.dtype.itemsize,
    )


def _products(module: nn.Module, steps: int) -> int:
    """Multiply-adds of a chain of layers for `steps` steps of its input."""
    count = 0
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d):
            steps //= layer.stride[0]
            count += steps * layer.weight.numel()
        elif isinstance(layer, nn.ConvTranspose1d):
            count += steps * layer.weight.numel()
            steps *= layer.stride[0]
        elif isinstance(layer, nn.Linear):
            count += steps * layer.weight.numel()
    return count


def shares(work: dict[str, float], seconds: float, gemm: float, bandwidth: float) -> dict[str, float]:
    """Compute the share of the machine's rates that is reached: of matrix products, and of reading memory.

    Args:
        work: operations and bytes, see [`Work.offline`] and [`Work.live`].
        seconds: how long the work took.
        gemm, bandwidth: GFLOP/s and GB/s, see [`Roofline`].
    """
    return {
        "gemm": work["operations"] / seconds / GIGA / gemm,
        "bandwidth": work["bytes"] / seconds / GIGA / bandwidth,
    }


# A model


@dataclass(frozen=True)
class OfflineRow:
    """A whole recording at once.

    task: "encode" or "decode".
    seconds, batch: length of the audio in seconds, and how many of that length.
    median: seconds that the call takes.
    speed: seconds of audio per second, of all rows together.
    gemm: the part reached of the machine's rate of matrix products.
    """

    task: str
    seconds: float
    batch: int
    median: float
    speed: float
    gemm: float


@dataclass(frozen=True)
class LiveRow:
    """Frame by frame, the sessions as rows of one stream.

    median, p99: milliseconds per frame of all sessions, the median and the 99th percentile.
    gemm, bandwidth: the parts reached of the machine's rates of matrix products and of reading memory.
    """

    task: str
    sessions: int
    median: float
    p99: float
    gemm: float
    bandwidth: float


@dataclass(frozen=True)
class BenchmarkReport:
    """What [`benchmark`] measured.

    machine: see [`describe_machine`].
    dtype, num_quantizers: of the model, and codebooks in use.
    frame: milliseconds of audio per frame; a live stream must take less.
    work: of one frame, by task.
    """

    machine: dict
    roofline: Roofline
    dtype: str
    num_quantizers: int
    frame: float
    work: dict[str, Work]
    offline: list[OfflineRow]
    live: list[LiveRow]

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


@torch.inference_mode()
def benchmark(
    model: MimiModel,
    seconds: Iterable[float] = (2.0, 12.0),
    batches: Iterable[int] = (1, 8),
    sessions: Iterable[int] = (1, 16),
    num_quantizers: int | None = None,
    repeats: int = 3,
    frames: int = 100,
    roofline: Roofline | None = None,
    progress: Callable[[float], None] | None = None,
) -> BenchmarkReport:
    """Measure a model where it is, in its dtype, on noise.

    Args:
        model: a [`MimiModel`]; a half that it lacks is left out.
        seconds, batches: lengths and numbers of recordings, each with each.
        sessions: numbers of live sessions that share a stream.
        num_quantizers: codebooks in use; all by default.
        repeats: counted turns of the offline rows.
        frames: counted frames of the live rows.
        roofline: the machine's rates; measured if None.
        progress: called with the share that is done, from 0 to 1.

    Raises:
        ValueError: for a number of codebooks that the model does not have.
    """
    levels = model.check_num_quantizers(num_quantizers)
    dtype = str(model.dtype).removeprefix("torch.")
    roofline = roofline or measure_roofline(model.device, (dtype,))
    gemm = roofline.gemm[dtype]
    tasks = [task for task in ("encode", "decode") if getattr(model, f"{task}r") is not None]
    work = {task: count_work(model, task, levels) for task in tasks}
    offline_plan = [(task, length, batch) for task in tasks for length in seconds for batch in batches]
    live_plan = [(task, count) for task in tasks for count in sessions]
    offline, live = [], []

    def report():
        if progress is not None:
            progress((len(offline) + len(live)) / (len(offline_plan) + len(live_plan)))

    for task, length, batch in offline_plan:
        median = _offline_seconds(model, task, length, batch, levels, repeats)
        needed = work[task].offline(length * model.config.frame_rate, batch)
        reached = shares(needed, median, gemm, roofline.bandwidth)
        offline.append(OfflineRow(task, length, batch, median, batch * length / median, reached["gemm"]))
        report()
    for task, count in live_plan:
        times = _live_seconds(model, task, count, levels, frames)
        median = statistics.median(times)
        reached = shares(work[task].live(count), median, gemm, roofline.bandwidth)
        live.append(LiveRow(task, count, 1000 * median, 1000 * percentile(times, 99), **reached))
        report()
    frame = 1000 / model.config.frame_rate
    machine = describe_machine(model.device)
    return BenchmarkReport(machine, roofline, dtype, levels, frame, work, offline, live)


def _offline_seconds(model: MimiModel, task: str, length: float, batch: int, levels: int, repeats: int) -> float:
    """The median time of one call."""
    config = model.config
    if task == "encode":
        audio = _noise(model, batch, max(1, round(length * config.sampling_rate)))
        call = partial(model.encode, audio, num_quantizers=levels)
    else:
        codes = _codes(model, batch, levels, max(1, math.ceil(length * config.frame_rate)))
        call = partial(model.decode, codes)
    return medians(take_turns({task: call}, repeats, device=model.device))[task]


def _live_seconds(model: MimiModel, task: str, sessions: int, levels: int, frames: int) -> list[float]:
    """The time of each of `frames` frames, after some that warm up."""
    if task == "encode":
        push, chunk = model.encoder_stream(sessions, levels).push, _noise(model, sessions, model.config.frame_size)
    else:
        push, chunk = model.decoder_stream(sessions).push, _codes(model, sessions, levels, 1)
    return take_turns({task: partial(push, chunk)}, frames, warmup=1 + frames // 5, device=model.device)[task]


def _noise(model: MimiModel, batch: int, samples: int) -> Tensor:
    """Tensor, shape = (B, audio_channels, samples)."""
    generator = torch.Generator().manual_seed(0)
    return (0.1 * torch.randn(batch, model.config.audio_channels, samples, generator=generator)).to(model.device)


def _codes(model: MimiModel, batch: int, levels: int, frames: int) -> Tensor:
    """Tensor, shape = (B, K, F), int64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.codebook_size, (batch, levels, frames), generator=generator).to(model.device)
