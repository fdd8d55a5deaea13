"""Which part of a corpus a process does: as told, else as torchrun or Slurm say."""

import pytest

from mimi_hf.corpus.runners.ranks import my_part


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, (1, 0)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (4, 2)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "64", "SLURM_ARRAY_TASK_MIN": "0"}, (64, 7)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_COUNT": "5",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (5, 2),
        ),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, (8, 3)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (1, 0)),  # a batch script, which starts no steps
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3", "RANK": "1", "WORLD_SIZE": "2"}, (6, 3)),
    ],
)
def test_parts_are_what_the_environment_says(environment, part):
    assert my_part(None, None, environment) == part
    assert my_part(64, 7, environment) == (64, 7)


def test_parts_that_make_no_sense_are_refused():
    for arguments in ((4, 4), (4, -1), (4, None), (None, 2)):
        with pytest.raises(ValueError, match="shard_index"):
            my_part(*arguments, {})
    with pytest.raises(ValueError, match="SLURM_ARRAY_TASK_ID is 'x'"):
        my_part(None, None, {"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "2"})
