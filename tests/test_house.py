"""The rules of the house, which hold over every file of the package."""

import ast
import functools
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import mimi_hf

ROOT = Path(__file__).parents[1]
ROOMS = ("mimi_hf", "conversion", "model_card")
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
LONGEST_FILE = 450
LONGEST_BODY = 60

# Private names of torch's objects that a file of the package happens to define as well.
TORCH_NAMES = {"_version"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def defined_private(tree: ast.Module) -> set[str]:
    """Private names of functions, classes, variables and attributes that a file defines."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in names if is_private(name)} - TORCH_NAMES


@functools.cache
def private_of_package() -> set[str]:
    return set().union(*(defined_private(read(path)) for path in FILES))


def private_names(path: Path, tree: ast.Module) -> Iterator[str]:
    """Private names of other modules of the package: imported, or touched as attributes."""
    modules = set()  # what the file calls the modules that it imports
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.startswith("mimi_hf")}
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = [*path.relative_to(ROOT).parts[: -node.level]] if node.level else []
        parts += node.module.split(".") if node.module else []
        if parts[0] not in ROOMS:
            continue
        for alias in node.names:
            if is_private(alias.name):
                yield f"line {node.lineno}: {alias.name} of {'.'.join(parts)}"
            target = ROOT.joinpath(*parts, alias.name)
            if target.is_dir() or target.with_suffix(".py").exists():
                modules.add(alias.asname or alias.name)
    foreign = private_of_package() - defined_private(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner in modules or (node.attr in foreign and owner not in ("self", "cls", "super()")):
                yield f"line {node.lineno}: {owner}.{node.attr}"


def long_files(path: Path, tree: ast.Module) -> Iterator[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines >= LONGEST_FILE:
        yield f"{lines} lines"


def long_functions(path: Path, tree: ast.Module) -> Iterator[str]:
    """Functions whose body, without its docstring, is too long."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if lines > LONGEST_BODY:
                yield f"line {node.lineno}: the body of {node.name} has {lines} lines"


def untyped(path: Path, tree: ast.Module) -> Iterator[str]:
    """Public functions and methods of public classes of which a parameter or the return value has no type."""

    def visit(body: list[ast.stmt], prefix: str, bound: bool) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from visit(node.body, f"{prefix}{node.name}.", bound=True)
            elif isinstance(node, ast.If | ast.Try):
                yield from visit([*node.body, *node.orelse], prefix, bound)
            elif isinstance(node, Function) and (node.name in ("__init__", "__call__") or node.name[0] != "_"):
                arguments = [*node.args.posonlyargs, *node.args.args]
                static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
                arguments = arguments[1:] if bound and not static else arguments
                arguments += [*node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
                missing = [argument.arg for argument in arguments if argument and not argument.annotation]
                if node.returns is None and node.name != "__init__":
                    missing.append("return")
                if missing:
                    yield f"line {node.lineno}: {prefix}{node.name} has no type for {', '.join(missing)}"

    yield from visit(tree.body, "", bound=False)


RULES = {rule.__name__: rule for rule in (private_names, long_files, long_functions, untyped)}


@pytest.mark.parametrize("rule", RULES)
def test_every_file_keeps_the_rule(rule):
    offences = [
        f"{path.relative_to(ROOT).as_posix()}, {offence}" for path in FILES for offence in RULES[rule](path, read(path))
    ]
    assert not offences, "\n".join(offences)


def test_a_name_of_a_module_means_one_thing():
    """A command and what it calls may share a name."""
    places = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            places[path.name].append(path.parent.relative_to(ROOT).as_posix())
    twice = {name: folders for name, folders in places.items() if len(folders) > 1}
    assert not {name: folders for name, folders in twice.items() if len(folders) > 2 or "mimi_hf/cli" not in folders}


BREAKS = {
    "private_names": [
        "from mimi_hf.loading import _MISSING",
        "from .loading import _MISSING",
        "from mimi_hf import loading\nloading._load",
        "import mimi_hf.loading\nmimi_hf.loading._load",
        "def f(extractor):\n    extractor._chunked_length",
    ],
    "long_functions": ["def f():\n" + "    x = 1\n" * (LONGEST_BODY + 1)],
    "untyped": [
        "def f(x) -> int: ...",
        "def f(x: int): ...",
        "def f(*x) -> int: ...",
        "class A:\n    def __init__(self, x): ...",
        "class A:\n    @staticmethod\n    def f(x) -> int: ...",
        "async def f(*, x) -> int: ...",
    ],
}
KEEPS = {
    "private_names": [
        "from torch import _dynamo",
        "from .loading import ModelChoice\nModelChoice.load",
        "def f(self):\n    self._chunked_length",
        "def _chunked_length(): ...\ndef f(other):\n    other._chunked_length",
    ],
    "long_functions": ['def f():\n    """' + "\n" * 100 + '"""\n' + "    x = 1\n" * LONGEST_BODY],
    "untyped": [
        "class A:\n    def __init__(self, x: int): ...\n    def _f(self, x): ...",
        "class A:\n    @classmethod\n    def f(cls) -> int: ...",
        "def f(x: int, *a: int, **b: int) -> None:\n    def inner(x): ...",
        "class _A:\n    def f(self, x): ...",
    ],
}


@pytest.mark.parametrize("rule", BREAKS)
def test_rules_find_what_breaks_them_alone(rule):
    path = ROOT / "mimi_hf" / "new.py"
    for source in BREAKS[rule]:
        assert list(RULES[rule](path, ast.parse(source))), source
    for source in KEEPS[rule]:
        assert not list(RULES[rule](path, ast.parse(source))), source


def test_public_names_agree_for_python_editors_and_the_star():
    tree = read(ROOT / "mimi_hf" / "__init__.py")
    checking = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(checking.test) == "TYPE_CHECKING"
    seen = {alias.name: node.module for node in checking.body for alias in node.names}
    assert seen == mimi_hf._EXPORTS
    assert mimi_hf.__all__ == sorted([*seen, "auto", "register", "unregister"])


USER = """
import numpy as np
import torch
from typing_extensions import assert_type

import mimi_hf
from mimi_hf import MimiModel

model = MimiModel.from_pretrained("kyutai/mimi", dtype=torch.bfloat16).to("cuda").eval()
assert_type(model, mimi_hf.MimiModel)
assert_type(model.config, mimi_hf.MimiConfig)
assert_type(model.config.sampling_rate, int)
extractor = mimi_hf.MimiFeatureExtractor.from_pretrained("kyutai/mimi")
inputs = extractor([np.zeros(100), torch.zeros(2, 100), "a.wav", b""], sampling_rate=16_000, return_tensors="pt")
encoded = model.encode(inputs["input_values"], inputs["padding_mask"], num_quantizers=8)
assert_type(encoded, mimi_hf.MimiEncoderOutput)
assert_type(encoded.audio_codes, torch.Tensor)
assert_type(model.decode(encoded.audio_codes).audio_values, torch.Tensor)
encoder, decoder = model.encoder_stream(batch_size=2), model.decoder_stream()
assert_type(encoder, mimi_hf.EncoderStream)
assert_type(encoder.push(torch.zeros(2, 1, 1920)), torch.Tensor)
assert_type(decoder.push(encoded.audio_codes), torch.Tensor)
assert_type(mimi_hf.flatten_codes(encoded.audio_codes, offset=2048), torch.Tensor)
assert_type(mimi_hf.AudioCodesCollator(flatten=True)([{"audio_codes": [[1]]}]), dict[str, torch.Tensor])
mimi_hf.mimi_tiny_path() / "config.json"
mimi_hf.MimiCodec  # error
model.encode(audio=inputs)  # error
encoder.push("a.wav")  # error
extractor.sampling_rates  # error
"""


def test_editors_know_the_public_classes(tmp_path):
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    checker = shutil.which("basedpyright", path=places) or shutil.which("pyright", path=places)
    if checker is None:
        pytest.skip("neither basedpyright nor pyright is installed")
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "basic", "reportUnusedExpression": false}')
    process = subprocess.run(
        [checker, "--pythonpath", sys.executable, "--outputjson"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.lstrip().startswith("{"), process.stdout + process.stderr
    found = {
        diagnostic["range"]["start"]["line"]: diagnostic["message"]
        for diagnostic in json.loads(process.stdout)["generalDiagnostics"]
        if diagnostic["severity"] == "error"
    }
    lines = USER.splitlines()
    wrong = [f"{lines[line]}: {message}" for line, message in found.items() if not lines[line].endswith("# error")]
    assert not wrong, "\n".join(wrong)
    assert {number for number, line in enumerate(lines) if line.endswith("# error")} == set(found)
