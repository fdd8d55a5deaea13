"""Make the speech that `mimi-tiny` is trained on, and the speech that it is judged by, from public packages.

    python recipes/mimi_tiny/make_corpus.py corpus

Needs a Debian or Ubuntu with apt-get and dpkg-deb, ffmpeg, and flite. Under OUT lie train/{en,es,fr,ru}, studio
recordings of short announcements; train/ru-nsh, sentences read for a speech synthesizer; train/{hibari,flite},
synthetic voices; heldout/{librivox,italian}, which no model learns from; and LICENCES.md. Each part appears when it is
whole; parts that are there are left as they are, and an interrupted voice goes on where it was.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import soundfile
from silence import shorten_silence

from mimi_hf.utils.files import written_beside

BATCH = 32  # recordings that one ffmpeg decodes: a tenth of the time of one for each


@dataclass(frozen=True)
class Recordings:
    """A Debian package, and where its recordings go.

    name: the folder under OUT. pattern: of the files in the package. demuxer: ffmpeg's, where a file does not tell.
    """

    name: str
    package: str
    pattern: str
    licence: str
    speaker: str
    demuxer: str | None = None


@dataclass(frozen=True)
class Synthetic:
    """A voice that says made-up sentences. name: the folder under OUT, train/VOICE, as voices.py calls it."""

    name: str
    licence: str
    speaker: str
    minutes: float


def _asterisk(name: str, language: str, speaker: str, licence: str = "CC-BY-SA-3.0") -> Recordings:
    package = f"asterisk-core-sounds-{language}-g722"
    return Recordings(name, package, "**/*.g722", licence, f"{speaker}, Asterisk's announcements", "g722")


PARTS = (
    _asterisk("train/en", "en", "Allison Smith"),
    _asterisk("train/es", "es", "Allison Smith"),
    _asterisk("train/fr", "fr", "June Wallack"),
    _asterisk("train/ru", "ru", "Maxim Topal", "CC-BY-3.0"),
    Recordings(
        "train/ru-nsh",
        "festvox-ru",
        "**/wav/*.wav",
        "BSD-like, with attribution",
        "Nickolay V. Shmyrev's Russian voice for Festival",
    ),
    Synthetic("train/hibari", "Apache-2.0", "hibari-tts, one voice at nine pitches", 40),
    Synthetic("train/flite", "BSD-like (CMU)", "Flite's awb, kal16, rms and slt", 15),
    _asterisk("heldout/italian", "it", "Carlo Flora", "CC-BY-3.0"),
    Recordings(
        "heldout/librivox",
        "pocketsphinx-testdata",
        "**/librivox/*.wav",
        "public domain",
        "a LibriVox reader of Sense and Sensibility",
    ),
)

# What the voices' environment holds.
PYTHON_PACKAGES = ("hibari-tts[fast]==0.2.1", "soundfile==0.14.0")


class MissingError(Exception):
    """Something that a part needs is not there; the message says how to get it."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUT", type=Path)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in PARTS:
        place = output / part.name
        try:
            if not place.is_dir():
                place.parent.mkdir(exist_ok=True)
                (record if isinstance(part, Recordings) else speak)(part, place)
            files = list(place.glob("*.flac"))
            seconds = sum(soundfile.info(path).duration for path in files)
            print(f"{part.name:18} {len(files):6} recordings {seconds / 60:7.1f} minutes", flush=True)
        except (OSError, MissingError, subprocess.CalledProcessError) as error:
            failed.append(part.name)
            print(f"{part.name}: {describe(error)}", file=sys.stderr, flush=True)
    with written_beside(output / "LICENCES.md") as aside:
        lines = [f"- `{part.name}`: {part.speaker}; {part.licence}" for part in PARTS if part.name not in failed]
        aside.write_text("# Where this speech comes from\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"Not made: {', '.join(failed)}. Run the command again when what it says is mended.")


def record(part: Recordings, place: Path):
    """Fetch a package, and write its recordings as FLAC into `place`: those to train on with short pauses."""
    with tempfile.TemporaryDirectory() as folder, written_beside(place) as aside:
        run("apt-get", "download", part.package, cwd=folder)
        (package,) = Path(folder).glob("*.deb")
        run("dpkg-deb", "-x", package, Path(folder, "content"))
        files = [path for path in sorted(Path(folder, "content").glob(part.pattern)) if is_speech(path)]
        if not files:
            raise MissingError(f"{package.name} holds no {part.pattern}: its layout has changed; mend PARTS.")
        aside.mkdir()
        for first in range(0, len(files), BATCH):
            decode(files[first : first + BATCH], Path(folder), part.demuxer)
            for number, source in enumerate(files[first : first + BATCH]):
                audio, rate = soundfile.read(Path(folder, f"{number}.wav"), dtype="int16")
                if part.name.startswith("train/"):
                    audio = shorten_silence(audio, rate)
                if len(audio):
                    soundfile.write(aside / f"{first + number:04d}-{source.stem}.flac", audio, rate)


def is_speech(path: Path) -> bool:
    """Not a tone, and not an empty recording (Asterisk's packages hold both)."""
    return path.stat().st_size > 2000 and not any(word in path.stem for word in ("tone", "beep", "silence"))


def decode(files: list[Path], folder: Path, demuxer: str | None):
    """Decode recordings to 0.wav, 1.wav, … in `folder`."""
    inputs = [item for path in files for item in (*(("-f", demuxer) if demuxer else ()), "-i", path)]
    outputs = [item for number in range(len(files)) for item in ("-map", f"{number}:a", folder / f"{number}.wav")]
    run("ffmpeg", "-nostdin", "-loglevel", "error", "-y", *inputs, *outputs)


def speak(part: Synthetic, place: Path):
    """Let a voice speak, in the voices' own environment. What it has said is kept until all is said."""
    voice = place.name
    if voice == "flite" and not shutil.which("flite"):
        raise MissingError("flite is not installed. Install it: apt-get install flite")
    output = place.parent.parent
    unfinished = output / f".{voice}"
    script = Path(__file__).with_name("voices.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run(set_up(output / ".environment"), script, voice, unfinished.absolute(), part.minutes, environment=environment)
    unfinished.rename(place)


def set_up(environment: Path) -> Path:
    """The Python of an environment with the voices; made where it is not there or holds others."""
    python, ready = environment.absolute() / "bin" / "python", environment / "voices.txt"
    wanted = "\n".join(PYTHON_PACKAGES)
    if not ready.is_file() or ready.read_text() != wanted:
        run(sys.executable, "-m", "venv", "--clear", environment)
        run(python, "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES)
        ready.write_text(wanted)
    return python


def run(*command, cwd=None, environment=None):
    """Run a program; what it says is part of the error."""
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True, capture_output=True)


def describe(error: Exception) -> str:
    """What went wrong, in the words of the program that failed."""
    if isinstance(error, FileNotFoundError) and error.filename in ("apt-get", "dpkg-deb", "ffmpeg"):
        return f"{error.filename} is not installed. The recordings need Debian's apt-get and dpkg-deb, and ffmpeg."
    if isinstance(error, subprocess.CalledProcessError):
        words = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        hint = " Is the package index up to date? apt-get update" if "apt-get" in error.cmd else ""
        return f"{Path(error.cmd[0]).name} failed: {' '.join(words[-3:]) or f'exit {error.returncode}'}.{hint}"
    return str(error)


if __name__ == "__main__":
    main()
