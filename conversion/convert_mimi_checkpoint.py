"""Convert Mimi checkpoints between Kyutai's original format and transformers. The same as `mimi-hf convert`.

    python conversion/convert_mimi_checkpoint.py SOURCE OUTPUT [--config config.json] [--to-original] [--force]
        [--push-to-hub USER/NAME] [--private]

`--help` explains the options. mimi_hf must be installed.
"""

import typer

from mimi_hf.conversion.command import convert

if __name__ == "__main__":
    typer.run(convert)
