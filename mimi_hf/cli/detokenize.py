"""The command `mimi-hf detokenize`."""

from typing import Annotated

import typer

from .corpora import JobOptions, planning, run_job
from .options import (
    DEFAULT_MODEL,
    ActorsOption,
    AnyModelOption,
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
    QuantizersOption,
    QuietOption,
    RayAddressOption,
    RevisionOption,
    ShardIndexOption,
    ShardSizeOption,
    check_dtype,
)


def detokenize(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="The output of `mimi-hf tokenize`, or other parquet files of codes: a folder, a file, a pattern, s3://…,"
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
    kind: Annotated[str, typer.Option("--format", help="Format of the audio: flac, wav or ogg.")] = "flac",
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write parquet shards with a column of audio instead of files.")
    ] = False,
    codes_column: Annotated[
        str | None, typer.Option(help="Column that holds the codes.", show_default="audio_codes")
    ] = None,
    revision: RevisionOption = None,
    any_model: AnyModelOption = False,
    shard_size: ShardSizeOption = None,
    batch_seconds: BatchSecondsOption = None,
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
    json: JsonOption = False,
) -> None:
    """Decode a data set of codes to audio.

        mimi-hf detokenize my-codes my-audio

    writes my-audio/audio/<id>.flac, each as long as the original recording.
    With --parquet, OUT is a data set for `datasets` instead.

    Like `mimi-hf tokenize`, it works in shards, goes on after a crash, and
    shares the work between processes, machines or Ray actors.

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
        from mimi_hf.corpus.jobs.detokenize import DetokenizeJob
        from mimi_hf.corpus.jobs.storage import Output
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
    run_job(job, job_options)
