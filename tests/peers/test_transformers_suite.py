"""transformers' own tests, of the installed version: nothing is worse with our classes than with native's.

The tests that all models share run on Mimi, its config and its feature extractor, and on the models that embed Mimi,
after `import mimi_hf`. What does not pass with ours is run with native's classes, too.
"""

import re
from typing import NamedTuple

import pytest
import transformers
from packaging.version import Version
from support.transformers_suite import Outcome, find_tests, lay_out, run_suite

ALONE = ["MimiTest", "MimiConfigTest", "FeatureExtractorTest"]
EMBEDDED = ["CsmTest", "MoshiTest", "SpeechToTextTest", "CsmConfigTest", "MoshiConfigTest", "SpeechToTextConfigTest"]


class Difference(NamedTuple):
    """Tests that do better with native's classes than with ours, on purpose.

    tests: a regular expression of their names, "Class.test".
    message: what each of them says when it fails or is skipped, as the beginning of a match.
    reason: why it may.
    before: the version of transformers in which the difference is gone.
    """

    tests: str
    message: str
    reason: str
    before: str = "99"

    def explains(self, name: str, outcome: Outcome) -> bool:
        return bool(re.fullmatch(self.tests, name) and re.match(self.message, outcome.message))


DIFFERENCES = [
    Difference(
        r".*\.test_init_weights_can_init_buffers",
        "(?s).*`embed_sum` in module `Codebook`[^`]*`MimiModel`\n*$",
        "New codebooks are random, so that a new model gives more than one code. Native's are zeros.",
    ),
    Difference(
        r".*\.(test_can_load_from_already_mapped_keys|test_reverse_loading_mapping)",
        "No conversion found",
        "Our parameters have the names of the checkpoints. Nothing is converted on loading.",
    ),
    Difference(
        r"MimiTest\.test_model_rope_scaling_frequencies",
        "This model has no standardized RoPE module",
        "Phases are computed in integers, so that streams never end; the only kind of RoPE is 'default'.",
    ),
    Difference(
        r"MimiTest\.test_capture_outputs_decorator",
        "No usage of the `capture_outputs` decorator",
        "It tests a decorator of transformers' own models.",
    ),
    Difference(
        r"MimiTest\.test_gradient_checkpointing_enable_disable",
        r"AssertionError: \[\] is not true",
        "Our layers are checkpointed without transformers' base class for it, which the codec does not know.",
    ),
    Difference(
        r"MimiTest\.test_eager_matches_sdpa_inference_.*_output_attentions",
        "Model does not support output_attentions",
        "`forward` gives no attentions, neither ours nor native's, whose signature only looks as if it did.",
    ),
    Difference(
        r"MimiTest\.test_can_init_all_missing_weights",
        "Not a prioritized model",
        "It takes a file without the year of its licence for an old one. Since 5.22 a class can ask for the test.",
        before="5.22",
    ),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with transformers' shared tests as a package."""
    pytest.importorskip("parameterized", reason="transformers' tests need parameterized: pip install parameterized")
    folder = tmp_path_factory.mktemp("transformers-suite")
    lay_out(find_tests(), folder)
    return folder


@pytest.mark.parametrize("classes", [ALONE, EMBEDDED], ids=["alone", "embedded"])
def test_nothing_is_worse_than_with_native(classes, package):
    ours = run_suite("ours", classes, package)
    rest = [name for name, outcome in ours.items() if outcome.result != "passed"]
    native = run_suite("native", rest, package)
    worse = {name: ours[name] for name in rest if ours[name].is_worse_than(native[name])}
    for name in classes:
        passed = [test for test, outcome in ours.items() if test.startswith(f"{name}.") and outcome.result == "passed"]
        assert len(passed) >= (7 if name.endswith(("ConfigTest", "ExtractorTest")) else 80), name
    installed = Version(transformers.__version__)
    differences = [difference for difference in DIFFERENCES if installed < Version(difference.before)]
    unexplained = [
        f"{name} {outcome.result}, with native {native[name].result}: {outcome.message[:500]}"
        for name, outcome in worse.items()
        if not any(difference.explains(name, outcome) for difference in differences)
    ]
    assert not unexplained, "\n".join(unexplained)
    needless = [
        f"{name} passes. Take it out of the list: {difference.reason}"
        for name, outcome in ours.items()
        for difference in differences
        if outcome.result == "passed" and re.fullmatch(difference.tests, name)
    ]
    assert not needless, "\n".join(needless)
