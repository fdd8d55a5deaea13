"""The command `mimi-hf tokenize`."""

from enum import Enum
from typing import Annotated

import typer

from .common import DEFAULT_MODEL, DeviceOption, DtypeOption, ModelOption, QuietOption, check_dtype
from .corpora import (
    ActorsOption,
    EngineOption,
    JsonOption,
    NumProcOption,
    NumShardsOption,
    PrivateOption,
    PushOption,
    RayAddressOption,
    ShardIndexOption,
    Work,
    do,
    explained,
)


class Kind(str, Enum):
    """What a source can be."""

    folder = "folder"
    manifest = "manifest"
    parquet = "parquet"
    webdataset = "webdataset"
    hub = "hub"


def tokenize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of audio files, a manifest (.jsonl, .csv, .tsv), parquet files, WebDataset tars, or the id"
            " of a data set on the Hub (hf://datasets/user/name@revision for one of its revisions). Folders and files"
            " may lie on s3:// and the like, too.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(metavar="OUT", help="The folder to make: a path, s3://…, hf://datasets/…", show_default=False),
    ],
    model: ModelOption = DEFAULT_MODEL,
    num_quantizers: Annotated[
        int, typer.Option("--num-quantizers", "-k", help="Codebooks to use. 8 make 1.1 kbps.", min=1)
    ] = 8,
    dtype: DtypeOption = "float32",
    device: DeviceOption = None,
    kind: Annotated[
        Kind | None, typer.Option(help="What SOURCE is, where it can't be told by its look.", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split of a Hub data set; the only one.", show_default=False)
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="Which configuration of a Hub data set.", show_default=False)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the model on the Hub.", show_default=False)] = None,
    audio_column: Annotated[
        str | None, typer.Option(help="Where rows have their audio; as it is commonly called.", show_default=False)
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="Another column to keep; repeat for more.", show_default="all"),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(
            help="Examples in a shard, about: what a crash costs, and a file of OUT.",
            min=1,
            show_default="50 to 1000, by the size of SOURCE",
        ),
    ] = None,
    batch_seconds: Annotated[
        float | None,
        typer.Option(help="Padded audio in a batch, in seconds.", show_default="what suits the device"),
    ] = None,
    readers: Annotated[
        int | None,
        typer.Option(help="Threads of each process that read and resample.", min=1, show_default="one a core, 2 to 8"),
    ] = None,
    num_proc: NumProcOption = None,
    num_shards: NumShardsOption = None,
    shard_index: ShardIndexOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    ray_actors: ActorsOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first recording that can't be read.")] = False,
    push_to_hub: PushOption = None,
    private: PrivateOption = False,
    quiet: QuietOption = False,
    json_report: JsonOption = False,
):
    """Tokenize a whole data set into parquet shards of codes.

    A folder of recordings, then what `datasets` makes of it:

        mimi-hf tokenize my-recordings my-codes

        python -c "import datasets; print(datasets.load_dataset('my-codes')['train'][0])"

    Each shard appears whole or not at all. After a crash, the same command
    goes on where it was; when all is done, it does nothing. What can't be
    read goes to a table of failures, with its reason.

    A GPU does it alone; several share by themselves, a process each. On a
    cluster, each task takes its part, as torchrun and Slurm arrays say:

        torchrun --nproc-per-node 8 --no-python mimi-hf tokenize user/speech s3://bucket/codes

        sbatch --array=0-63 --wrap "mimi-hf tokenize user/speech /shared/codes"

    or as you say: --num-shards 64 --shard-index 7. With --engine ray, a Ray
    cluster does it all.

    Exit status: 0 when done, 1 when it failed, 2 for a wrong command, 130
    when interrupted.
    """
    check_dtype(dtype)
    work = Work(
        engine,
        num_proc,
        num_shards,
        shard_index,
        ray_address,
        ray_actors,
        device,
        push_to_hub,
        private,
        quiet,
        json_report,
    )
    work.check(output)
    with explained(quiet, f"Looking at {source} …"):
        from mimi_hf.corpus.jobs.encoding import EncodingOptions
        from mimi_hf.corpus.jobs.output import Output
        from mimi_hf.corpus.jobs.tokenize import TokenizeJob
        from mimi_hf.corpus.sources import open_source
        from mimi_hf.loading import ModelChoice

        place = Output(output)
        examples = open_source(source, kind and kind.value, split, config, audio_column, column, leave_out=output)
        options = EncodingOptions(num_quantizers, batch_seconds, readers)
        choice = ModelChoice(model, dtype, revision)
        job = TokenizeJob(examples, place, choice, options, shard_size, strict)
    do(job, work)
