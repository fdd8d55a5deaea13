"""The command `mimi-hf detokenize`."""

from typing import Annotated

import typer

from .common import DEFAULT_MODEL, DeviceOption, DtypeOption, ModelOption, QuantizersOption, QuietOption, check_dtype
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


def detokenize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="What `mimi-hf tokenize` made, or other parquet files of codes: a folder, a file, a pattern, s3://…,"
            " or the id of a data set on the Hub.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str, typer.Argument(metavar="OUT", help="The folder to make: a path, s3://…", show_default=False)
    ],
    model: ModelOption = DEFAULT_MODEL,
    num_quantizers: QuantizersOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = None,
    kind: Annotated[str, typer.Option("--format", help="Of the audio: flac, wav or ogg.")] = "flac",
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write parquet shards with a column of audio, rather than files.")
    ] = False,
    codes_column: Annotated[
        str | None, typer.Option(help="Where rows have their codes.", show_default="audio_codes")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of the model on the Hub.", show_default=False)] = None,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Decode with a model of other codebooks than made the codes.")
    ] = False,
    shard_size: Annotated[
        int | None,
        typer.Option(
            help="Examples in a shard, about: what a crash costs, and a file of OUT.",
            min=1,
            show_default="50 to 1000, by the size of SOURCE",
        ),
    ] = None,
    batch_seconds: Annotated[
        float | None, typer.Option(help="Padded audio in a batch, in seconds.", show_default="what suits the device")
    ] = None,
    num_proc: NumProcOption = None,
    num_shards: NumShardsOption = None,
    shard_index: ShardIndexOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    ray_actors: ActorsOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that can't be decoded.")] = False,
    push_to_hub: PushOption = None,
    private: PrivateOption = False,
    quiet: QuietOption = False,
    json_report: JsonOption = False,
):
    """Decode a data set of codes back to audio, to listen to or to train on.

        mimi-hf detokenize my-codes my-audio

    writes my-audio/audio/<id>.flac, as long as the original recordings.
    With --parquet, OUT is a data set for `datasets` instead.

    It works in shards, goes on after a crash, and shares the work between
    processes, machines or Ray actors as `mimi-hf tokenize` does.

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
        from mimi_hf.corpus.jobs.detokenize import DetokenizeJob
        from mimi_hf.corpus.jobs.output import Output
        from mimi_hf.corpus.sources.codes import open_codes
        from mimi_hf.loading import ModelChoice

        codes = open_codes(source, codes_column, leave_out=output)
        choice = ModelChoice(model, dtype, revision)
        job = DetokenizeJob(
            codes,
            Output(output),
            choice,
            kind,
            parquet,
            num_quantizers,
            batch_seconds,
            any_model,
            shard_size,
            strict,
        )
    do(job, work)
