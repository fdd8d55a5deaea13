"""A live call between two processes: one speaks, the other listens, and codes travel over a socket frame by frame.

In two terminals, the listener first:

    python examples/live_call.py listen heard.wav
    python examples/live_call.py speak speech.wav

The speaker reads a file in real time, as a microphone gives it (`--fast`: without waiting), and sends every frame when
its 80 ms are there. The listener decodes each frame on arrival and writes it to a WAV file, or with `-` as raw 16-bit
samples to standard output, for a player:

    python examples/live_call.py listen - | aplay -f S16_LE -r 24000 -c 1 -t raw

The speaker prints the bitrate, the listener the delay from the first sample of a frame to its decoded audio. With
`--host` they run on two machines; then the delay is right if their clocks agree. What travels is a `.mimi` stream.
"""

import argparse
import contextlib
import io
import socket
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from mimi_hf import MimiModel, mimi_tiny_path
from mimi_hf.audio import AudioBlocks, write_blocks
from mimi_hf.bitstream import BitstreamReader, BitstreamWriter, Header
from mimi_hf.demo import speech_path


def load_model(name: str) -> MimiModel:
    torch.set_num_threads(1)  # enough for one call, and the other process needs a core, too
    model = MimiModel.from_pretrained(name, dtype=torch.float32)
    with torch.no_grad():  # the first call is slow, so it comes before the conversation
        model.decode(model.encode(torch.zeros(1, 1, 2 * model.config.frame_size)).audio_codes)
    return model


def speak(args: argparse.Namespace) -> None:
    model = load_model(args.model)
    config, encoder = model.config, model.encoder_stream(num_quantizers=args.num_quantizers)
    digest, num_bytes, num_samples, wire = model.codebook_digest, 0, 0, io.BytesIO()
    with (
        AudioBlocks(args.source, config.sampling_rate, channels=1, seconds=0.02) as blocks,
        socket.create_connection((args.host, args.port)) as connection,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # send small packets at once
        start = time.time()
        header = Header(args.num_quantizers, config.codebook_size, codebook_digest=digest, metadata={"start": start})
        writer = BitstreamWriter(wire, header, block_frames=1)  # every frame is written at once
        for block in blocks:  # (1, n)
            num_samples += block.shape[1]
            if not args.fast:
                time.sleep(max(0.0, start + num_samples / config.sampling_rate - time.time()))
            writer.write(encoder.push(torch.from_numpy(block)[None])[0])  # (K, 0) or (K, 1)
            connection.sendall(wire.getvalue())
            num_bytes += wire.tell()
            wire.seek(0)
            wire.truncate()
        writer.write(encoder.flush().audio_codes[0])
        writer.close(num_samples)
        connection.sendall(wire.getvalue())
    kbps = 8 * (num_bytes + wire.tell()) / 1000 / (writer.num_frames / config.frame_rate)
    print(f"{writer.num_frames} frames sent, {kbps:.2f} kbps, {header.bits_per_second / 1000:.2f} of it codes")


@contextlib.contextmanager
def open_output(path: str, rate: int) -> Iterator[Callable[[np.ndarray], object]]:
    if path == "-":
        with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as out:
            yield lambda audio: out.write((audio.clip(-1, 1) * 32767).astype("<i2").tobytes())
    else:
        with write_blocks(path, rate, channels=1) as write:
            yield write


def listen(args: argparse.Namespace) -> None:
    model = load_model(args.model)
    decoder, delays = model.decoder_stream(), []
    with socket.create_server((args.host, args.port)) as server:
        print(f"listening at {args.host}:{server.getsockname()[1]}", file=sys.stderr, flush=True)
        connection, _ = server.accept()
    output = open_output(args.output, model.config.sampling_rate)
    with connection, connection.makefile("rb") as wire, output as write:
        reader = BitstreamReader(wire)
        if reader.header.codebook_digest != model.codebook_digest:
            raise SystemExit("The speaker has another model. Give both the same --model.")
        for codes in reader:  # (1, K, 1)
            write(decoder.push(torch.from_numpy(codes.astype(np.int64)))[0].numpy())
            spoken = reader.header.metadata["start"] + len(delays) / reader.header.frame_rate
            delays.append(1000 * (time.time() - spoken))
    print(f"{len(delays)} frames heard, delay {np.median(delays):.0f} ms, at most {max(delays):.0f}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    listener, speaker = commands.add_parser("listen"), commands.add_parser("speak")
    listener.add_argument("output", nargs="?", default="heard.wav", help="a WAV file, or - for raw samples")
    speaker.add_argument("source", nargs="?", default=str(speech_path()), help="an audio file")
    speaker.add_argument("--fast", action="store_true", help="do not wait for real time")
    speaker.add_argument("--num-quantizers", type=int, default=8, help="codebooks: 8 of kyutai/mimi are 1.1 kbps")
    for command, action in ((listener, listen), (speaker, speak)):
        command.add_argument("--model", default=str(mimi_tiny_path()), help="for example kyutai/mimi")
        command.add_argument("--host", default="127.0.0.1")
        command.add_argument("--port", type=int, default=4000)
        command.set_defaults(run=action)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
