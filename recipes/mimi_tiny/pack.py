"""Turn a trained small model into the one that comes with the package: half precision, codebooks ready for use.

python recipes/mimi_tiny/pack.py runs/tiny/best mimi_hf/assets/mimi_tiny recordings/
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mimi_hf import MimiFeatureExtractor, MimiModel
from mimi_hf.audio_io import read_audio
from mimi_hf.corpus.sources.base import AUDIO_EXTENSIONS

LIMIT = 6_000_000


def pack(source: Path, output: Path):
    """Write the model at `source` to `output`, in at most 6 MB.

    Raises:
        ValueError: it is larger.
    """
    model = MimiModel.from_pretrained(source, dtype=torch.float32)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("embed_sum"):  # sums and counts do not fit half precision, entries do
            tensor = tensor / model.state_dict()[name.replace("embed_sum", "cluster_usage")].clamp(min=1e-5)[:, None]
        elif name.endswith("cluster_usage"):
            tensor = torch.ones_like(tensor)
        state[name] = tensor.half().contiguous()
    output.mkdir(parents=True, exist_ok=True)
    save_file(state, output / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(output)
    config = json.loads((output / "config.json").read_text())
    config["dtype"] = "float32"  # what from_pretrained loads it as
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    MimiFeatureExtractor(sampling_rate=model.config.sampling_rate).save_pretrained(output)
    size = sum(path.stat().st_size for path in output.iterdir())
    if size > LIMIT:
        raise ValueError(f"{output} has {size} bytes, more than {LIMIT}. Train a smaller model.")
    print(
        f"{size / 1e6:.2f} MB, {sum(item.numel() for item in load_file(output / 'model.safetensors').values())} numbers"
    )


def compare(source: Path, output: Path, recordings: Path):
    """Say what half precision costs: equal codes, and the difference of the audio of the same codes."""
    before, after = (MimiModel.from_pretrained(path, dtype=torch.float32).eval() for path in (source, output))
    equal, signal, noise = [], 0.0, 0.0
    for path in sorted(path for path in recordings.rglob("*") if path.suffix[1:].lower() in AUDIO_EXTENSIONS):
        audio = torch.from_numpy(read_audio(path, before.config.sampling_rate, 1)[0])[None]
        with torch.no_grad():
            codes = before.encode(audio).audio_codes
            equal.append((after.encode(audio).audio_codes == codes).float().mean(dim=(0, 2)))
            first, second = (model.decode(codes).audio_values for model in (before, after))
        signal, noise = signal + float(first.square().sum()), noise + float((first - second).square().sum())
    shares = ", ".join(f"{100 * float(share):.2f}" for share in torch.stack(equal).mean(dim=0))
    print(f"equal codes, by codebook: {shares} %; audio of the same codes: {10 * np.log10(signal / noise):.1f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder that training saved")
    parser.add_argument("output", type=Path, help="where the packed model goes")
    parser.add_argument("recordings", type=Path, nargs="?", help="compare both on these")
    arguments = parser.parse_args()
    pack(arguments.source, arguments.output)
    if arguments.recordings:
        compare(arguments.source, arguments.output, arguments.recordings)
