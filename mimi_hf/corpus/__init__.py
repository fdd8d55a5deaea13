"""Whole data sets: sources of recordings, and the jobs that turn them into codes and back.

Example:
    >>> from mimi_hf.corpus import EncodingOptions, Output, TokenizeJob, open_source, run_here
    >>> from mimi_hf.loading import ModelChoice
    >>> source, model = open_source("recordings/"), ModelChoice("kyutai/mimi")  # doctest: +SKIP
    >>> job = TokenizeJob(source, Output("codes/"), model, EncodingOptions(num_quantizers=8))  # doctest: +SKIP
    >>> job.begin()  # doctest: +SKIP
    >>> run_here(job, job.unfinished())  # doctest: +SKIP
    >>> job.finish()["hours"]  # doctest: +SKIP
    12.5
"""

from typing import TYPE_CHECKING

from mimi_hf.utils.lazy import import_on_use

if TYPE_CHECKING:  # for editors and type checkers; `_EXPORTS` is the same list for Python
    from .jobs.detokenize import DetokenizeJob
    from .jobs.encoding import Encoded, EncodingOptions, encode_examples
    from .jobs.job import ExampleError, Job
    from .jobs.storage import Output
    from .jobs.tokenize import TokenizeJob
    from .runners.local import run_here, run_processes
    from .runners.ranks import my_part
    from .runners.ray import run_ray
    from .sources import Example, Source, open_source, resolve_audio
    from .sources.codes import CodesSource, open_codes

__all__ = [
    "CodesSource",
    "DetokenizeJob",
    "Encoded",
    "EncodingOptions",
    "Example",
    "ExampleError",
    "Job",
    "Output",
    "Source",
    "TokenizeJob",
    "encode_examples",
    "my_part",
    "open_codes",
    "open_source",
    "resolve_audio",
    "run_here",
    "run_processes",
    "run_ray",
]

# The module of each name. Python imports it on first use: a source needs no torch.
_EXPORTS = {
    "CodesSource": "sources.codes",
    "DetokenizeJob": "jobs.detokenize",
    "Encoded": "jobs.encoding",
    "EncodingOptions": "jobs.encoding",
    "Example": "sources",
    "ExampleError": "jobs.job",
    "Job": "jobs.job",
    "Output": "jobs.storage",
    "Source": "sources",
    "TokenizeJob": "jobs.tokenize",
    "encode_examples": "jobs.encoding",
    "my_part": "runners.ranks",
    "open_codes": "sources.codes",
    "open_source": "sources",
    "resolve_audio": "sources",
    "run_here": "runners.local",
    "run_processes": "runners.local",
    "run_ray": "runners.ray",
}


if not TYPE_CHECKING:
    __getattr__, __dir__ = import_on_use(__name__, _EXPORTS)
