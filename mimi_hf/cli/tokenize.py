"""The command `mimi-hf tokenize`."""

from enum import Enum
from typing import Annotated

import typer

from .corpora import JobOptions, planning, run_job
from .options import (
    DEFAULT_MODEL,
    ActorsOption,
    BatchSecondsOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    JsonOption,
    ModelOption,
    NumProcOption,
    NumShardsOption,
    PrivateOption,
    PushOption,
    QuietOption,
    RayAddressOption,
    RevisionOption,
    ShardIndexOption,
    ShardSizeOption,
    check_dtype,
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
    kind: Annotated[Kind | None, typer.Option(help="What SOURCE is; detected by default.", show_default=False)] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a Hub data set; needed if it has several.", show_default=False)
    ] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.", show_default=False)] = None,
    revision: RevisionOption = None,
    audio_column: Annotated[
        str | None,
        typer.Option(help="Column that holds the audio; found by its usual names by default.", show_default=False),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="Another column to keep; repeat for more.", show_default="all"),
    ] = None,
    shard_size: ShardSizeOption = None,
    batch_seconds: BatchSecondsOption = None,
    readers: Annotated[
        int | None,
        typer.Option(help="Threads per process that read and resample.", min=1, show_default="one per core, 2 to 8"),
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
    json: JsonOption = False,
) -> None:
    """Tokenize a whole data set into parquet shards of codes.

    Tokenize a folder of recordings, then look at the result with `datasets`:

        mimi-hf tokenize my-recordings my-codes

        python -c "import datasets; print(datasets.load_dataset('my-codes')['train'][0])"

    The kind of SOURCE is detected. Each shard appears whole or not at all.
    After a crash, the same command goes on where it was; when all is done,
    it does nothing. Recordings that can't be read are listed in a table of
    failures, with the reason.

    Uses all GPUs, one process each. On a cluster, each task of torchrun or
    of a Slurm array does its part:

        torchrun --nproc-per-node 8 --no-python mimi-hf tokenize user/speech s3://bucket/codes

        sbatch --array=0-63 --wrap "mimi-hf tokenize user/speech /shared/codes"

    Elsewhere, choose the part: --num-shards 64 --shard-index 7. With
    --engine ray, the actors of a Ray cluster do all parts.

    Exit status: 0 when done, 1 when it failed, 2 for a wrong command, 130
    when interrupted.
    """
    check_dtype(dtype)
    job_options = JobOptions(
        engine=engine,
        num_proc=num_proc,
        num_shards=num_shards,
        shard_index=shard_index,
        ray_address=ray_address,
        ray_actors=ray_actors,
        device=device,
        push_to_hub=push_to_hub,
        private=private,
        quiet=quiet,
        json=json,
    )
    job_options.check(output)
    with planning(f"Looking at {source} …", quiet):
        from mimi_hf.corpus.jobs.encoding import EncodingOptions
        from mimi_hf.corpus.jobs.storage import Output
        from mimi_hf.corpus.jobs.tokenize import TokenizeJob
        from mimi_hf.corpus.sources import open_source
        from mimi_hf.loading import ModelChoice

        place = Output(output)
        examples = open_source(source, kind and kind.value, split, config, audio_column, column, leave_out=output)
        options = EncodingOptions(num_quantizers, batch_seconds, readers)
        choice = ModelChoice(model, dtype, revision)
        job = TokenizeJob(examples, place, choice, options, shard_size, strict)
    run_job(job, job_options)
