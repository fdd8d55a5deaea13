"""Pages of documentation: their code blocks and links, and a process that runs them.

A page is one program: its python and bash blocks, in order, in a folder of its own. That folder holds a recording,
`speech.wav`, and a folder `my-recordings`. Comments in the page, which readers do not see, direct it:

    <!-- prepare           python that runs at this place
    <!-- not run: why -->  the next block does not run
    <!-- requires: name -->  the page runs where this package is installed
"""

import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"<!-- prepare\n(?P<prepare>.*?)-->|<!-- not run: (?P<reason>.+?) -->"
    r"|^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    flags=re.DOTALL | re.MULTILINE,
)
_OPERATORS = {"|", ";", "&", "&&", "||", ">", ">>", "<", "(", ")"}


@dataclass(frozen=True)
class Block:
    """A fenced block of code, or a hidden preparation.

    line: of the page where its code begins.
    language: as the fence says.
    reason: why it does not run, where it does not.
    """

    line: int
    language: str
    code: str
    reason: str | None = None


def read_blocks(page: Path) -> list[Block]:
    """The code of a page, in order."""
    blocks, reason, text = [], None, page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        if found["reason"]:
            reason = found["reason"]
            continue
        kind, language = ("prepare", "python") if found["prepare"] else ("code", found["language"])
        line = text.count("\n", 0, found.start(kind)) + 1
        blocks.append(Block(line, language, found[kind], reason))
        reason = None
    return blocks


def required_packages(page: Path) -> list[str]:
    """What a page says that it needs."""
    return re.findall(r"<!-- requires: (\w+) -->", page.read_text(encoding="utf-8"))


def shell_commands(code: str) -> Iterator[list[str]]:
    """The words of each command in lines of bash, or in the lines of a console that begin with `$`."""
    if re.search(r"^\$ ", code, flags=re.MULTILINE):
        code = "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)$", code, flags=re.MULTILINE))
    for line in code.replace("\\\n", " ").splitlines():
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if word not in _OPERATORS:
                words.append(word)
            elif words:
                yield words
                words = []


def mimi_hf_arguments(words: list[str]) -> Iterator[list[str]]:
    """The arguments of `mimi-hf` in a command: where it stands behind others, such as `torchrun`, or in quotes, too."""
    for index, word in enumerate(words):
        if word == "mimi-hf" or word.endswith("/mimi-hf"):
            yield words[index + 1 :]
        elif word.startswith("mimi-hf "):
            yield shlex.split(word)[1:]


def run_page(page: Path, folder: Path) -> str | None:
    """Run a page in a folder: what went wrong, None where nothing did."""
    import mimi_hf
    from mimi_hf.cli import app

    mimi_hf.register()
    os.chdir(folder)
    namespace = {"__name__": "__main__"}
    for block in read_blocks(page):
        if block.reason or block.language not in ("python", "bash"):
            continue
        try:
            if block.language == "python":
                code = "\n" * (block.line - 1) + block.code  # so that a traceback tells the line of the page
                exec(compile(code, str(page), "exec"), namespace)
                continue
            for words in shell_commands(block.code):
                if not words[0].endswith("mimi-hf"):
                    raise ValueError(f"only mimi-hf runs here, not {words[0]}; say `<!-- not run: why -->` before it")
                app(words[1:], prog_name="mimi-hf", standalone_mode=False)
        except (Exception, SystemExit) as error:
            if not isinstance(error, SystemExit) or error.code:
                return f"{page}, block at line {block.line}:\n{traceback.format_exc()}"
    return None


def main():
    """Run the pages that standard input names, each in its folder; print what went wrong."""
    errors = {}
    for page, folder in json.load(sys.stdin).items():
        errors[page] = run_page(Path(page), Path(folder))
    Path(sys.argv[1]).write_text(json.dumps(errors), encoding="utf-8")


if __name__ == "__main__":
    main()
