"""What `mkdocs build` does with docstrings: fields become lists, and [`names`] become links."""

import re

import griffe

# A paragraph of lines such as `start, duration: the part to decode`, with indented lines that continue them.
_FIELDS = re.compile(r"(?:(?<=\n\n)|\A)(?:\w+(?:, \w+)*: .+(?:\n[ ]+.+)*(?:\n(?!\n)|\Z))+")
_REFERENCE = re.compile(r"\[(<code[^>]*>([\w.]+)</code>)\]")


class ReadableDocstrings(griffe.Extension):
    """Shows a section `Example` as code, and the fields that a class lists in its docstring as `Attributes`."""

    def on_instance(self, *, obj: griffe.Object, **_):
        if obj.docstring:  # `Examples` is the name that the parser knows
            obj.docstring.value = re.sub(r"(?m)^Example:\n\n?", "Examples:\n", obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_):
        if cls.docstring and "Attributes:" not in cls.docstring.value:
            cls.docstring.value = _FIELDS.sub(lambda found: self._section(cls, found[0]), cls.docstring.value)

    def _section(self, cls: griffe.Class, lines: str) -> str:
        if re.match(r"\w+", lines)[0] not in cls.members:
            return lines
        # The parser would take what follows a space for a type.
        lines = re.sub(r"(?m)^\w+(?:, \w+)+:", lambda names: names[0].replace(" ", "\N{NO-BREAK SPACE}"), lines)
        return "Attributes:\n" + re.sub(r"(?m)^", "    ", lines)


def on_env(env, config, files, **_):
    """Link [`name`] to the one place of the reference that documents it; elsewhere only the brackets go."""
    known = config.plugins["autorefs"]._primary_url_map

    def link(found: re.Match) -> str:
        ends = [anchor for anchor in known if anchor == found[2] or anchor.endswith(f".{found[2]}")]
        return f'<autoref identifier="{ends[0]}">{found[1]}</autoref>' if len(ends) == 1 else found[1]

    for file in files.documentation_pages():
        file.page.content = _REFERENCE.sub(link, file.page.content)
    return env
