"""Matrix products with weights, in the orientation and precision that the number of rows asks for.

A live frame gives every layer one to a few rows. Such a product is bound by reading the weight, and BLAS reads a
row-major weight several times faster as the left factor: `weight @ x.T` instead of `x @ weight.T`, the same sums in the
same order of memory. A single row is doubled, since BLAS answers it with a matrix-vector routine that is slower still.

Weights may be 8-bit integers with a scale per row (see `mimi_hf.quantization`). Few rows are multiplied with these as
they are, in half precision; for many rows the weight is first turned back into floats.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graphs import is_few

# Up to this many rows, the other orientation is faster in single precision on a CPU (MKL, 1 to 200 rows measured).
FEW_ROWS = 100
# Up to this many rows, 8-bit weights are faster as they are.
FEW_ROWS_INT8 = 32
# Up to this many rows, copying the inputs costs less than reading the weight in several parts: it is read at once.
FEWEST_ROWS = 8
# Blocks narrower than this, such as audio's one or two channels, are joined: a product of their own would not pay.
NARROW = 16

_PLAIN = (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)


def is_plain(module: nn.Module) -> bool:
    """Whether the weight and the bias say all that a layer does, so that a product with them may replace its call.

    They do not where an adapter or another class stands in its place, where hooks run, and where a parametrization
    computes the weight. Such a layer must be called.
    """
    if type(module) not in _PLAIN or "forward" in module.__dict__:
        return False
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def sum_of_products(blocks: list[Tensor], weight: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """`sum(block @ (matrix * scale).T) + bias` over blocks and the matrices of the weight.

    Args:
        blocks: Tensors, each of shape (B, T, M).
        weight: Tensor, shape = (len(blocks), N, M), the last dimension contiguous.
        bias: Tensor, shape = (N,), or None.
        scale: Tensor, shape = (len(blocks), N), where the weight is int8, else None.

    Returns:
        Tensor, shape = (B, T, N).
    """
    batch, steps, width = blocks[0].shape
    kind = blocks[0].device.type
    if torch.is_autocast_enabled(kind):
        # Autocast knows no product that adds in place.
        dtype = torch.get_autocast_dtype(kind)
        blocks = [block.to(dtype) for block in blocks]
        bias = None if bias is None else bias.to(dtype)
    rows = [block.reshape(batch * steps, width) for block in blocks]  # views where the batch is 1
    if scale is not None and not _takes_int8(blocks[0]):
        weight = weight.to(rows[0].dtype) * scale.to(rows[0].dtype)[:, :, None]
        scale = None
    side_by_side = len(rows) > 1 and weight.stride(0) == width
    if side_by_side and (width < NARROW or scale is not None or _few(blocks[0], FEWEST_ROWS)):
        rows, weight = [torch.cat(rows, dim=1)], weight.transpose(0, 1).flatten(1)[None]
        scale = None if scale is None else scale[:1]  # one per row of the whole weight
    if scale is not None:
        return _int8_product(rows, weight.unbind(), scale, bias).view(batch, steps, -1)
    matrices = weight.to(rows[0].dtype).unbind()
    if _few(blocks[0], FEW_ROWS) and rows[0].dtype == torch.float32:
        total = _few_rows_product(rows, matrices, bias).contiguous()
    else:
        total = F.linear(rows[0], matrices[0], bias)
        for row, matrix in zip(rows[1:], matrices[1:], strict=True):
            total.addmm_(row, matrix.t())
    return total.view(batch, steps, -1)


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """`module(x)`. x: Tensor, shape = (B, T, M) -> Tensor, shape = (B, T, N), maybe with contiguous columns."""
    if not is_plain(module):
        refuse_int8(module)
        return module(x)
    if getattr(module, "weight_scale", None) is not None:  # of `mimi_hf.quantization`
        return sum_of_products([x], module.weight[None], module.bias, cast(Tensor, module.weight_scale)[None])
    # A weight that is not torch's own (quantized) has its own way to multiply.
    if type(module.weight) is nn.Parameter and x.dtype == torch.float32 and _few(x, FEW_ROWS):
        rows = x.flatten(0, 1).contiguous()
        return _few_rows_product([rows], [module.weight], module.bias).unflatten(0, x.shape[:2])
    return module(x)


def call_convolution(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)` of a convolution that is not plain. x: Tensor, shape = (B, T, M) -> Tensor, shape = (B, T', N)."""
    refuse_int8(module)
    return module(x.transpose(1, 2)).transpose(1, 2)


def refuse_int8(module: nn.Module) -> None:
    """Refuse hooks on 8-bit weights, and adapters around them: only the products here read such weights.

    Raises:
        ValueError: there are some.
    """
    for layer in module.modules():
        if type(layer) in _PLAIN and getattr(layer, "weight_scale", None) is not None:
            raise ValueError(
                f"A layer with 8-bit weights (MimiInt8Config) has hooks or an adapter ({type(module).__name__}), and"
                " takes none. Load the model without quantization_config, or call model.dequantize() first."
            )


def _few(x: Tensor, most: int) -> bool:
    """Are the rows of x: Tensor, shape = (B, T, M), few, and is what makes few of them fast at hand?"""
    return is_few(most, x.shape[1], x.shape[0]) and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _takes_int8(x: Tensor) -> bool:
    """Few rows, of a width that torch's kernel can take, and no gradient.

    The kernel crashes where a row is no multiple of 32 bytes, or begins at none: activations never do, and
    `MimiModel.arrange_weights` sees to the weights.
    """
    gradient = torch.is_grad_enabled() and x.requires_grad
    return _few(x, FEW_ROWS_INT8) and x.shape[2] % 32 == 0 and not gradient


def _few_rows_product(rows: Sequence[Tensor], matrices: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """rows: Tensors, each of shape (R, M) -> Tensor, shape = (R, N), its columns contiguous."""
    count = rows[0].shape[0]
    if count == 1:
        rows = [row.repeat(2, 1) for row in rows]
    columns = matrices[0] @ rows[0].t() if bias is None else torch.addmm(bias[:, None], matrices[0], rows[0].t())
    for row, matrix in zip(rows[1:], matrices[1:], strict=True):
        columns.addmm_(matrix, row.t())
    return columns.t()[:count]


def _int8_product(rows: Sequence[Tensor], matrices: Sequence[Tensor], scales: Tensor, bias: Tensor | None) -> Tensor:
    """rows: Tensors, each of shape (R, M) -> Tensor, shape = (R, N)."""
    half, dtype = torch.bfloat16, rows[0].dtype
    total = bias
    for row, matrix, scale in zip(rows, matrices, scales, strict=True):
        # A weight that was loaded in inference mode lies in another order, see `arrange_weight`.
        part = torch._weight_int8pack_mm(row.to(half), matrix.contiguous(), scale.to(half))
        total = part.to(dtype) if total is None else total + part
    assert total is not None
    return total
