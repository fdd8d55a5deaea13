"""The voices that say the sentences.

It runs in an environment of its own, which make_corpus.py sets up:

    python voices.py VOICE FOLDER MINUTES

writes FLAC files into FOLDER until they make MINUTES. A file depends on its number alone, and those that are there are
left as they are: after an interruption the same command goes on.
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from sentences import sentence
from silence import shorten_silence


class Hibari:
    """One American voice, made into others by speaking slower and playing faster, or the reverse."""

    def __init__(self):
        from hibari import Hibari as Engine

        self.engine = Engine(threads=1)

    def say(self, text: str, chance: random.Random) -> tuple[np.ndarray, int, str]:
        from scipy.signal import resample_poly

        pitch = chance.choice((15, 16, 17, 18, 19, 20, 21, 22, 23))  # twentieths: 0.75 is a man, 1.15 a child
        audio = self.engine(text, speed=20 / pitch * chance.uniform(0.85, 1.2), seed=chance.getrandbits(32))
        return resample_poly(audio, 20, pitch), self.engine.sample_rate, f"pitch{5 * pitch}"


class Flite:
    """The voices of CMU Flite, at 16 kHz."""

    names = ("awb", "rms", "slt", "kal16")

    def say(self, text: str, chance: random.Random) -> tuple[np.ndarray, int, str]:
        name, stretch = chance.choice(self.names), f"duration_stretch={chance.uniform(0.85, 1.2):.2f}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "speech.wav")
            command = ["flite", "-voice", name, "--setf", stretch, "-t", text, "-o", path]
            subprocess.run(command, check=True, capture_output=True)
            audio, rate = soundfile.read(path, dtype="float32")
        return audio, rate, name


VOICES = {"hibari": Hibari, "flite": Flite}


def utterance(voice, name: str, number: int) -> tuple[np.ndarray, int, str]:
    """The `number`-th utterance of a voice: audio (N,), its rate, and what to call it."""
    chance = random.Random(f"{name} {number}")
    audio, rate, speaker = voice.say(sentence(chance), chance)
    return shorten_silence(np.asarray(audio, dtype=np.float32), rate), rate, speaker


def main(name: str, folder: Path, minutes: float):
    voice = VOICES[name]()
    folder.mkdir(parents=True, exist_ok=True)
    there = {int(path.name[:5]): path for path in folder.glob("[0-9]*.flac")}
    seconds, number = 0.0, 0
    while seconds < 60 * minutes:
        if number in there:
            seconds += soundfile.info(there[number]).duration
        else:
            audio, rate, label = utterance(voice, name, number)
            aside = folder / f".{number:05d}.new"
            soundfile.write(aside, np.clip(audio, -1, 1), rate, format="FLAC", subtype="PCM_16")
            aside.rename(folder / f"{number:05d}-{label}.flac")
            seconds += len(audio) / rate
        number += 1


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
