"""Conversion of checkpoints in both directions. The output is reloaded and compared, bit by bit, before it appears."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from mimi_hf.configuration_mimi import MimiConfig
from mimi_hf.conversion import is_folder_or_id
from mimi_hf.conversion.architecture import infer_config
from mimi_hf.conversion.keys import to_original, to_ours
from mimi_hf.conversion.original import read_original, sha256
from mimi_hf.model_card import fill_card
from mimi_hf.utils.files import written_beside

if TYPE_CHECKING:
    from mimi_hf.modeling_mimi import MimiModel

# Error messages list this many names per kind of problem, and count the others.
_LISTED = 20
_FOLDER = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote.

    Attributes:
        output: the folder or file.
        tensors: how many tensors the original format has.
        parameters: how many numbers they hold, codebooks included.
        sha256: digest of the file in the original format, whether it was read or written.
        url: where it was uploaded to, or None.
    """

    output: Path
    tensors: int
    parameters: int
    sha256: str
    url: str | None = None


def convert_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    config: MimiConfig | str | Path | None = None,
    force: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
) -> ConversionReport:
    """Convert an original Mimi checkpoint to a folder that `MimiModel.from_pretrained` loads.

    The folder holds `config.json`, `model.safetensors` (float32), `preprocessor_config.json` and a filled model card.
    It appears only after it was reloaded and is equal to `source`, bit by bit. A failure leaves nothing behind.

    Args:
        source: the original file: `.safetensors`, or a pickled state dict (`.pt`, `.pth`, `.th`, `.bin`,
            `.ckpt`), by itself or under `model` or `best_state`.
        output_dir: the folder to make. The folder above it must exist.
        config: the architecture, or a `config.json`. By default sizes are inferred from the tensors; what they do not
            show (attention heads, window, sampling rate, dilations) gets the published values.
        force: replace an earlier conversion in `output_dir`.
        push_to_hub: `"user/name"`, to upload the folder to. The token is that of `hf auth login` or of
            the environment variable `HF_TOKEN`.
        private: whether a repository that the upload creates is private.

    Returns:
        [`ConversionReport`]

    Raises:
        FileNotFoundError, FileExistsError: `source` is not there; `output_dir` is, without `force`.
        ValueError: `source` is damaged or another model's; the message lists every missing, unexpected, wrong-shaped
            and not finite tensor.

    Example:
        >>> report = convert_checkpoint("tokenizer-e351c8d8-checkpoint125.safetensors", "mimi")  # doctest: +SKIP
        >>> report.tensors  # doctest: +SKIP
        318
    """
    source, output_dir = Path(source), Path(output_dir)
    _check_output(output_dir, force, folder=True)
    if push_to_hub is not None:
        _check_upload(push_to_hub)
    original, config = _read_checked(source, config)
    digest = sha256(source)
    card = fill_card(
        config, source_name=source.name, sha256=digest, model_id=push_to_hub or f"./{output_dir.absolute().name}"
    )
    with written_beside(output_dir) as temporary:
        temporary.mkdir()
        _write_folder(temporary, to_ours(original, config), config)
        card.save(temporary / "README.md")
        written, written_config = _load_folder(temporary)
        _compare(to_original(written, written_config), original)
    url = _upload(output_dir, push_to_hub, private) if push_to_hub else None
    return ConversionReport(output_dir, len(original), _count(original), digest, url)


def load_original(source: str | Path, config: MimiConfig | str | Path | None = None) -> "MimiModel":
    """Load an original Mimi checkpoint as it is, without a conversion on disk.

    Args:
        source, config: as for [`convert_checkpoint`].

    Returns:
        The model, float32, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: as [`convert_checkpoint`].

    Example:
        >>> model = load_original("tokenizer-e351c8d8-checkpoint125.safetensors")  # doctest: +SKIP
    """
    from mimi_hf.modeling_mimi import MimiModel

    original, config = _read_checked(source, config)
    with _quiet():
        model: Any = MimiModel.from_pretrained(
            None, config=config, state_dict=to_ours(original, config), dtype=torch.float32
        )
    model.name_or_path = model.config.name_or_path = str(source)
    return model


def export_checkpoint(folder: str | Path, output_file: str | Path, force: bool = False) -> ConversionReport:
    """Write a checkpoint of ours in Kyutai's original format, for Kyutai's own PyTorch, MLX and Rust implementations.

    Args:
        folder: a folder that `MimiModel.from_pretrained` loads, or the id of one on the Hub.
        output_file: the `.safetensors` file to make, float32. The folder above it must exist.
        force: replace a file that is there.

    Returns:
        [`ConversionReport`]

    Raises:
        FileNotFoundError, FileExistsError: `folder` is not there; `output_file` is, without `force`.
        ValueError: `folder` is no complete Mimi checkpoint, or one that the original format cannot hold.

    Example:
        >>> report = export_checkpoint("kyutai/mimi", "mimi.safetensors")  # doctest: +SKIP
    """
    output_file = Path(output_file)
    if output_file.suffix != ".safetensors":
        raise ValueError(
            f"output_file={str(output_file)!r} must end in .safetensors, by which Kyutai's loader knows the format."
        )
    _check_output(output_file, force, folder=False)
    ours, config = _load_folder(folder)
    original = {name: tensor.contiguous() for name, tensor in to_original(ours, config).items()}
    _check_tensors(original, config, folder, given=True)
    with written_beside(output_file) as temporary:
        _save(original, temporary)
        _compare(to_ours(load_file(temporary), config), ours)
        digest = sha256(temporary)
    return ConversionReport(output_file, len(original), _count(original), digest)


def _read_checked(source: str | Path, config: MimiConfig | str | Path | None) -> tuple[dict[str, Tensor], MimiConfig]:
    """Read an original checkpoint that is complete, and its configuration, inferred where it is not given."""
    original = read_original(source)
    given = config is not None
    config = _read_config(config) if given else infer_config(original)
    _check_tensors(original, config, source, given)
    return original, config


def _count(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def _read_config(config: MimiConfig | str | Path) -> MimiConfig:
    if isinstance(config, MimiConfig):
        return config
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {str(path)!r}. Pass a MimiConfig or its config.json.")
    return _mimi_config(path)


def _mimi_config(name: str | Path) -> MimiConfig:
    """Read a MimiConfig from a file, a folder or the Hub. Other models are refused; transformers only warns."""
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{str(name)!r} holds no config.json. Pass the folder that save_pretrained wrote.")
    values, _ = MimiConfig.get_config_dict(name)
    if values.get("model_type") != "mimi":
        raise ValueError(
            f"{str(name)!r} describes a model of type {values.get('model_type')!r}, but only Mimi codecs ('mimi') can"
            " be converted. Pass the folder of the codec itself."
        )
    return MimiConfig.from_dict(values)


def _check_tensors(original: Mapping[str, Tensor], config: MimiConfig, source: str | Path, given: bool) -> None:
    """Raise one error that lists all differences of `original` from a checkpoint of this architecture."""
    from mimi_hf.modeling_mimi import MimiModel

    with torch.device("meta"):
        expected = {
            name: tuple(tensor.shape) for name, tensor in to_original(MimiModel(config).state_dict(), config).items()
        }
    shapes = {name: tuple(tensor.shape) for name, tensor in original.items()}
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [name for name in shapes if name not in expected],
        "wrong shape": [
            f"{name} is {shapes[name]}, must be {shape}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
        "not finite (NaN or infinity)": [name for name, value in original.items() if not value.isfinite().all()],
    }
    if not any(problems.values()):
        return
    if "encoder.layers.0.conv.weight" in original:
        remedy = "Its names are those of the Hub: no conversion is needed, MimiModel.from_pretrained loads its folder."
    elif len(problems["missing"]) > len(expected) / 2:
        remedy = "Most of it is missing: this is another model's file. Pass the checkpoint of a Mimi codec."
    elif not any(names for kind, names in problems.items() if kind != "not finite (NaN or infinity)"):
        remedy = "Such a codec decodes to NaN: take an earlier checkpoint, or download it again."
    elif given:
        remedy = "Pass the configuration that belongs to these tensors, or take the complete checkpoint."
    else:
        remedy = "Take the complete checkpoint; if its sizes were inferred wrongly, pass its `config`."
    raise ValueError(
        f"{str(source)!r} is no complete checkpoint of this Mimi codec:\n{_list_problems(problems)}\n{remedy}"
    )


def _list_problems(problems: Mapping[str, list[str]]) -> str:
    """Write a line per kind of problem: `kind (number): names`."""
    lines = []
    for kind, names in problems.items():
        if names:
            more = f"; and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            lines.append(f"  {kind} ({len(names)}): {'; '.join(names[:_LISTED])}{more}")
    return "\n".join(lines)


def _write_folder(folder: Path, ours: Mapping[str, Tensor], config: MimiConfig) -> None:
    from mimi_hf.feature_extraction_mimi import MimiFeatureExtractor

    config = MimiConfig.from_dict({**config.to_dict(), "architectures": ["MimiModel"], "dtype": "float32"})
    config.save_pretrained(folder)
    # transformers refuses a file without "format".
    ours = {name: tensor.contiguous() for name, tensor in ours.items()}
    _save(ours, folder / "model.safetensors", metadata={"format": "pt"})
    MimiFeatureExtractor(feature_size=config.audio_channels, sampling_rate=config.sampling_rate).save_pretrained(folder)


def _save(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    # safetensors makes files that only their owner can read: restore the permissions of the user's other files.
    path.touch()
    mode = path.stat().st_mode
    save_file(state, path, metadata)
    path.chmod(mode)


def _load_folder(folder: str | Path) -> tuple[dict[str, Tensor], MimiConfig]:
    """Load the tensors of a checkpoint of ours, float32, and its configuration. It must be complete."""
    from mimi_hf.modeling_mimi import MimiModel

    if not is_folder_or_id(folder):
        raise FileNotFoundError(
            f"{str(folder)!r} is neither a folder nor the id of a model on the Hub ('user/name'). Pass the folder that"
            " save_pretrained wrote."
        )
    config = _mimi_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{str(folder)!r} holds 8-bit weights, which the original format does not. Pass the folder that they were"
            " made of, or one saved after `model.dequantize()`."
        )
    try:
        with _quiet():
            # Different sizes are ignored here, and listed below with all other problems.
            loaded: Any = MimiModel.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
            model, info = loaded
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"The weights in {str(folder)!r} cannot be read ({error}). Save or download the checkpoint again."
        ) from error
    problems = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(problems.values()):
        raise ValueError(
            f"{str(folder)!r} is no complete Mimi checkpoint:\n{_list_problems(problems)}\nPass a folder whose"
            " config.json belongs to its weights."
        )
    return model.state_dict(), model.config


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bar and the load report of transformers: their content is raised here as one error."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError unless two state dicts have the same names, shapes and bits; -0.0 is not 0.0."""
    bits = torch.int32
    differing = set(found) ^ set(wanted)
    for name in found.keys() & wanted.keys():
        if not torch.equal(found[name].view(bits), wanted[name].view(bits)):
            differing.add(name)
    if differing:
        raise RuntimeError(
            f"What was written differs from its source in {len(differing)} tensors ({', '.join(sorted(differing)[:5])},"
            " ...), so it was removed. Check the disk; if that is sound, this is a bug of mimi_hf: please report it."
        )


def _check_output(output: Path, force: bool, folder: bool) -> None:
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"{str(output.parent)!r}, where {output.name!r} is to be written, is no folder. Make it first."
        )
    if not output.exists():
        return
    if output.is_dir() != folder:
        raise FileExistsError(
            f"{str(output)!r} is a {'folder' if output.is_dir() else 'file'}, but a {'folder' if folder else 'file'} is"
            " to be written there. Choose another name."
        )
    entries = [entry.name for entry in output.iterdir()] if folder else []
    if folder and not entries:
        return
    if not force:
        raise FileExistsError(f"{str(output)!r} exists. Choose another name, or pass force=True to replace it.")
    foreign = sorted(set(entries) - {*_FOLDER})
    if foreign:
        raise FileExistsError(
            f"{str(output)!r} holds more than a conversion ({', '.join(foreign[:5])}), which force=True would delete."
            " Choose another name, or move these away."
        )


def _check_upload(repo_id: str) -> None:
    validate_repo_id(repo_id)
    if get_token() is None:
        raise ValueError(
            f"push_to_hub={repo_id!r} needs a token of the Hub, and there is none. Run `hf auth login`, or set the"
            " environment variable HF_TOKEN."
        )


def _upload(folder: Path, repo_id: str, private: bool) -> str:
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Convert with mimi_hf")
        return str(url)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{str(folder)!r} is converted and verified, but could not be uploaded to {repo_id!r}: {error} Upload it"
            f" with `hf upload {repo_id} {folder}`."
        ) from error
