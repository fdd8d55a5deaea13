"""Ranks: which part of the work this process does, as torchrun, accelerate or Slurm says."""

import os
from collections.abc import Mapping


def my_part(
    num_shards: int | None, shard_index: int | None, environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """How many parts the work has, and which of them this process does.

    Without arguments, torchrun, accelerate or Slurm say it through the environment. Each task of a Slurm array does
    one part. Its own ranks, of torchrun or srun, share that part.

    Returns:
        (number of parts, index of ours); (1, 0) where nothing says otherwise.

    Raises:
        ValueError: for an index that is not below the number, or one of them alone.

    Example:
        >>> my_part(None, None, {"RANK": "2", "WORLD_SIZE": "4"})
        (4, 2)
    """
    if (num_shards is None) != (shard_index is None):
        raise ValueError("num_shards and shard_index belong together: give both, like 64 and 7, or none.")
    if num_shards is None or shard_index is None:
        num_shards, shard_index = 1, 0
        if environment.get("SLURM_ARRAY_TASK_ID") and environment.get("SLURM_ARRAY_TASK_COUNT"):
            num_shards = _number(environment, "SLURM_ARRAY_TASK_COUNT")
            position = _number(environment, "SLURM_ARRAY_TASK_ID") - _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
            shard_index = position // _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
            if shard_index >= num_shards:
                raise ValueError(
                    "The tasks of this Slurm array do not follow each other (--array=5,9), so that it cannot be told"
                    " which part is whose. Give --num-shards and --shard-index, for example of the array before."
                )
        ranks, rank = 1, 0
        if environment.get("RANK") and environment.get("WORLD_SIZE"):
            ranks, rank = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
        elif _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:  # in a step alone; a batch script knows SLURM_NTASKS
            ranks, rank = _number(environment, "SLURM_STEP_NUM_TASKS"), _number(environment, "SLURM_PROCID")
        num_shards, shard_index = num_shards * ranks, shard_index * ranks + rank
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index={shard_index} must be from 0 to num_shards - 1 = {num_shards - 1}.")
    return num_shards, shard_index


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Which of the ranks on this machine this process is; `None` where it is alone."""
    if environment.get("RANK") and environment.get("LOCAL_RANK"):
        return _number(environment, "LOCAL_RANK")
    if environment.get("RANK") or _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _number(environment, "SLURM_LOCALID", 0)
    return None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, default)
    try:
        return int(value if value is not None else "")
    except ValueError:
        raise ValueError(
            f"The environment variable {name} is {value!r}, but must be a whole number. Give the number of parts and"
            " the index of this one (--num-shards, --shard-index)."
        ) from None
