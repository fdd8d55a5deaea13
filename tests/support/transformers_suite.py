"""transformers' own tests: found for the installed version, and run on native's classes or on ours.

The wheel of transformers has no tests. Its source package on PyPI has those that all models share (`ModelTesterMixin`
and others), but not what these import from other folders, nor the tests of single models. So the shared ones are laid
out as a package with stand-ins for the rest, and `transformers_cases` derives test cases from them.
"""

import json
import os
import subprocess
import sys
import tarfile
import unittest
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers
from filelock import FileLock

PACKAGE = "transformers_tests"  # the name under which the shared tests are laid out
SHARED = (
    "test_modeling_common.py",
    "test_configuration_common.py",
    "test_feature_extraction_common.py",
    "test_sequence_feature_extraction_common.py",
)
# What the shared tests import from folders that the source package lacks.
STAND_INS = {
    "__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: ...",
    "generation/test_utils.py": "class GenerationTesterMixin: ...",
    "utils/test_configuration_utils.py": "config_common_kwargs = "
    + repr(
        {
            "return_dict": False,
            "output_hidden_states": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 3,
            "is_encoder_decoder": True,
            "architectures": ["SomeModel"],
            "id2label": {0: "one", 1: "other"},
            "label2id": {"one": 0, "other": 1},
            "problem_type": "regression",
        }
    ),
}
ORDER = ["passed", "skipped", "failed"]  # from best to worst


class Outcome(NamedTuple):
    """How a test ended: one of `ORDER`, and why it was skipped or failed."""

    result: str
    message: str

    def is_worse_than(self, other: "Outcome") -> bool:
        return ORDER.index(self.result) > ORDER.index(other.result)


def find_tests() -> Path:
    """The folder of transformers' tests for the installed version; the test at hand is skipped where there is none.

    `TRANSFORMERS_SOURCE` names an unpacked source package. Without it, pip downloads one, once for each version.
    """
    unpacked = os.environ.get("TRANSFORMERS_SOURCE")
    if unpacked:
        folder = Path(unpacked) / "tests"
        if not (folder / SHARED[0]).exists():
            raise FileNotFoundError(f"TRANSFORMERS_SOURCE={unpacked}, but {folder / SHARED[0]} does not exist.")
        return folder
    name = f"transformers-{transformers.__version__}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mimi_hf_tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / name / "tests"
    with FileLock(cache / f"{name}.lock"):
        if not folder.exists():
            download(name, cache)
    return folder


def download(name: str, cache: Path) -> None:
    """Put the tests of a version's source package into `cache / name`, or skip the test at hand."""
    options = ["--no-binary", ":all:", "--no-deps", "--dest", str(cache)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, name.replace("-", "==")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    archive = cache / f"{name}.tar.gz"
    if done.returncode or not archive.exists():
        pytest.skip(f"pip cannot download the source package of {name}: {done.stderr.strip()[-300:]}")
    target = cache / name / "tests"
    partial = target.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as package:
        for file in SHARED:
            content = package.extractfile(f"{name}/tests/{file}")
            assert content is not None, file
            (partial / file).write_bytes(content.read())
    partial.rename(target)
    archive.unlink()


def lay_out(tests: Path, folder: Path) -> None:
    """Make the package of shared tests in `folder`."""
    for file, content in STAND_INS.items():
        path = folder / PACKAGE / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    for file in SHARED:
        (folder / PACKAGE / file).write_bytes((tests / file).read_bytes())


def run_suite(side: str, names: list[str], folder: Path) -> dict[str, Outcome]:
    """Run test cases in a process of their own.

    Args:
        side: "native" for transformers' classes, "ours" for those of this package, registered.
        names: of classes in `transformers_cases`, or "Class.test".
        folder: where [`lay_out`] made the package.

    Returns:
        The outcome of each test, under "Class.test".
    """
    report = folder / f"{side}.json"
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "MIMI_SIDE": side}
    command = [sys.executable, "-m", "support.transformers_suite", str(report), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Outcome(*outcome) for name, outcome in json.loads(report.read_text()).items()}


class Recorder(unittest.TestResult):
    """Keeps the worst outcome of each test and of its subtests."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, Outcome] = {}

    def record(self, test: unittest.TestCase, result: str, message: object = "") -> None:
        whole = getattr(test, "test_case", test)  # of a subtest
        name = ".".join(whole.id().split(".")[-2:])
        outcome = Outcome(result, f"{type(message).__name__}: {message}" if isinstance(message, Exception) else message)
        if name not in self.outcomes or outcome.is_worse_than(self.outcomes[name]):
            self.outcomes[name] = outcome

    def addSuccess(self, test):  # noqa: N802
        self.record(test, "passed")

    def addExpectedFailure(self, test, error):  # noqa: N802
        self.record(test, "passed")

    def addSkip(self, test, reason):  # noqa: N802
        self.record(test, "skipped", reason)

    def addFailure(self, test, error):  # noqa: N802
        self.record(test, "failed", error[1])

    def addError(self, test, error):  # noqa: N802
        self.record(test, "failed", error[1])

    def addUnexpectedSuccess(self, test):  # noqa: N802
        self.record(test, "failed", "passes, but is expected to fail")

    def addSubTest(self, test, subtest, error):  # noqa: N802
        if error is not None:
            self.record(subtest, "failed", error[1])


def main(report: str, *names: str) -> None:
    recorder = Recorder()
    tests = unittest.defaultTestLoader.loadTestsFromNames([f"support.transformers_cases.{name}" for name in names])
    tests.run(recorder)
    Path(report).write_text(json.dumps(recorder.outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
