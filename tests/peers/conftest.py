"""What the comparisons with other implementations share."""

import pytest
import torch


def make_original_checkpoint(path):
    """Kyutai's own model with random weights, filled so that every part matters, saved in its own format."""
    from moshi.models import loaders
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = loaders.get_mimi(None, num_codebooks=32).state_dict()
    for name, tensor in state.items():
        if name.endswith("layer_scale_1.scale") or name.endswith("layer_scale_2.scale"):
            tensor.fill_(0.3)  # 0.01 would hide the transformers
        elif name.endswith("embedding_sum"):
            tensor.copy_(torch.randn_like(tensor) * 0.3)
        elif name.endswith("cluster_usage"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif name.endswith("_initialized"):
            tensor.fill_(1)
    # Kyutai's published file has the names of an older version of their code.
    renamed = {name.replace("_projs.0.weight", "_proj.weight"): tensor for name, tensor in state.items()}
    renamed = {
        name.replace("in_proj.weight", "in_proj_weight"): tensor.contiguous() for name, tensor in renamed.items()
    }
    save_file(renamed, path)


@pytest.fixture(scope="session")
def seeded_original(tmp_path_factory):
    """A file of Kyutai's format, of the published size."""
    pytest.importorskip("moshi", reason="Kyutai's own package is not installed: pip install --no-deps moshi==0.2.13 …")
    path = tmp_path_factory.mktemp("original") / "tokenizer.safetensors"
    make_original_checkpoint(path)
    return path
