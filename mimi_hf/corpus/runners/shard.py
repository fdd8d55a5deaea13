"""One shard, tried again where a network or a disk failed: what every runner does."""

import logging
import time
from collections.abc import Callable
from typing import Any

from mimi_hf.corpus.jobs.job import Job, Progress

logger = logging.getLogger(__name__)

# Seconds to wait before a shard is tried again, whose source or output could not be reached.
_PAUSES = (1.0, 15.0)
Watch = Callable[[float, int], None]  # seconds of audio so far, shards done so far


def do_shard(job: Job, model: Any, index: int, progress: Progress) -> None:
    """Call `job.run`; twice more where a network or a disk failed. `progress` takes back what was done in vain.

    Raises:
        OSError: it failed three times.
    """
    done = 0.0

    def count(more: float):
        nonlocal done
        done += more
        progress(more)

    for pause in (*_PAUSES, None):
        try:
            job.run(model, index, count)
            return
        except OSError as error:
            if pause is None:
                raise
            logger.warning("Shard %d failed (%s), and is tried again in %g s.", index, error, pause)
        count(-done)
        time.sleep(pause)
