"""Make the speech that `mimi-tiny` is trained on, and the speech that it is judged by, from Debian's packages.

    python recipes/mimi_tiny/make_corpus.py corpus

Needs a Debian or Ubuntu with apt-get and dpkg-deb, and ffmpeg. Under OUT lie train/{en,es,fr,ru}, studio recordings of
short announcements; heldout/{librivox,italian}, which no model learns from; and LICENCES.md. Parts that are there
already are left as they are.
"""

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mimi_hf.files import written_beside


@dataclass(frozen=True)
class Part:
    """A package, and where its recordings go.

    name: the folder under OUT. pattern: of the files in the package. demuxer: ffmpeg's, where a file does not tell.
    """

    name: str
    package: str
    pattern: str
    licence: str
    source: str
    demuxer: str | None = None


def _asterisk(name: str, language: str, voice: str, licence: str = "CC-BY-SA-3.0") -> Part:
    package = f"asterisk-core-sounds-{language}-g722"
    return Part(name, package, "**/*.g722", licence, f"Asterisk's announcements, spoken by {voice}", "g722")


PARTS = (
    _asterisk("train/en", "en", "Allison Smith"),
    _asterisk("train/es", "es", "Allison Smith"),
    _asterisk("train/fr", "fr", "June Wallack"),
    _asterisk("train/ru", "ru", "Maxim Topal", "CC-BY-3.0"),
    _asterisk("heldout/italian", "it", "Carlo Flora", "CC-BY-3.0"),
    Part(
        "heldout/librivox",
        "pocketsphinx-testdata",
        "**/librivox/*.wav",
        "public domain",
        "a LibriVox reader of Sense and Sensibility",
    ),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUT", type=Path)
    output = parser.parse_args().output
    failed = []
    for part in PARTS:
        if (output / part.name).is_dir():
            print(f"{part.name}: is there")
            continue
        try:
            count = make(part, output / part.name)
            print(f"{part.name}: {count} recordings")
        except (OSError, subprocess.CalledProcessError) as error:
            failed.append(part.name)
            print(f"{part.name}: {describe(error)}", file=sys.stderr)
    output.mkdir(parents=True, exist_ok=True)
    lines = [f"- `{part.name}`: {part.source}; {part.licence} (Debian package {part.package})" for part in PARTS]
    (output / "LICENCES.md").write_text("# Where these recordings come from\n\n" + "\n".join(lines) + "\n")
    if failed:
        sys.exit(f"Not made: {', '.join(failed)}. Run the command again when what it says is mended.")


def describe(error: Exception) -> str:
    """What went wrong, in the words of the program that failed."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is not installed. This needs Debian's apt-get and dpkg-deb, and ffmpeg."
    return (error.stderr or b"").decode(errors="replace").strip() if hasattr(error, "stderr") else str(error)


def make(part: Part, place: Path) -> int:
    """Fetch a package, and write its recordings as FLAC into the folder `place`, which appears when it is whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, written_beside(place) as aside:
        run("apt-get", "download", part.package, cwd=folder)
        (package,) = Path(folder).glob("*.deb")
        run("dpkg-deb", "-x", package, Path(folder, "content"))
        files = [path for path in sorted(Path(folder, "content").glob(part.pattern)) if path.stat().st_size > 2000]
        aside.mkdir()

        def convert(number: int):
            source = files[number]
            demuxer = ["-f", part.demuxer] if part.demuxer else []
            run(
                "ffmpeg",
                "-nostdin",
                "-loglevel",
                "error",
                *demuxer,
                "-i",
                source,
                aside / f"{number:04d}-{source.stem}.flac",
            )

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(convert, range(len(files))))
    return len(files)


def run(*command, cwd=None):
    """Run a program; what it says is part of the error."""
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, capture_output=True)


if __name__ == "__main__":
    main()
