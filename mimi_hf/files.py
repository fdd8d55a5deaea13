"""Files and folders that appear whole or not at all."""

import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(output: Path):
    """A path beside `output`, which takes its place at the end, in one step; after an error it is removed."""
    output = output.resolve()
    temporary, replaced = (output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.{end}") for end in ("new", "old"))
    try:
        yield temporary
        if not output.is_dir():
            os.replace(temporary, output)
            return
        # A folder cannot be renamed onto one that holds files: the old one steps aside, and back if that fails.
        os.rename(output, replaced)
        try:
            os.rename(temporary, output)
        except OSError:
            os.rename(replaced, output)
            raise
        shutil.rmtree(replaced)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
