"""Matrix products with weights, in the orientation that the number of rows asks for.

A live frame gives every layer one to a few rows. Such a product is bound by reading the weight, and BLAS reads a
row-major weight several times faster as the left factor: `weight @ x.T` instead of `x @ weight.T`, the same sums in the
same order of memory. A single row is doubled, since BLAS answers it with a matrix-vector routine that is slower still.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Up to here the other orientation is faster in single precision on a CPU (measured with MKL, 1 to 200 rows).
FEW_ROWS = 100


def sum_of_products(blocks: list[Tensor], weights: list[Tensor], bias: Tensor | None) -> Tensor:
    """`sum(block @ weight.T) + bias`.

    Args:
        blocks: Tensors, each of shape (B, T, M).
        weights: Tensors, each of shape (N, M), the rows contiguous.
        bias: Tensor, shape = (N,), or None.

    Returns:
        Tensor, shape = (B, T, N).
    """
    batch, steps, width = blocks[0].shape
    kind = blocks[0].device.type
    if torch.is_autocast_enabled(kind):
        # Autocast knows no product that adds in place.
        dtype = torch.get_autocast_dtype(kind)
        blocks, weights = ([tensor.to(dtype) for tensor in tensors] for tensors in (blocks, weights))
        bias = None if bias is None else bias.to(dtype)
    rows = [block.reshape(batch * steps, width) for block in blocks]  # views where the batch is 1
    if _few(rows[0]):
        total = _few_rows_product(rows, weights, bias).contiguous()
    else:
        total = F.linear(rows[0], weights[0], bias)
        for row, weight in zip(rows[1:], weights[1:], strict=True):
            total.addmm_(row, weight.t())
    return total.view(batch, steps, -1)


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """`module(x)`. x: Tensor, shape = (…, M) -> Tensor, shape = (…, N), maybe with contiguous columns."""
    rows = x.flatten(0, -2)
    # A module or a weight that is not torch's own (quantized, adapted, hooked) has its own way to multiply.
    plain = type(module) is nn.Linear and type(module.weight) is nn.Parameter and "forward" not in module.__dict__
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    if plain and not hooked and _few(rows):
        return _few_rows_product([rows.contiguous()], [module.weight], module.bias).unflatten(0, x.shape[:-1])
    return module(x)


def _few(rows: Tensor) -> bool:
    on_cpu = rows.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return rows.shape[0] <= FEW_ROWS and on_cpu and rows.dtype == torch.float32


def _few_rows_product(rows: list[Tensor], weights: list[Tensor], bias: Tensor | None) -> Tensor:
    """rows: Tensors, each of shape (R, M) -> Tensor, shape = (R, N), its columns contiguous."""
    count = rows[0].shape[0]
    if count == 1:
        rows = [row.repeat(2, 1) for row in rows]
    columns = weights[0] @ rows[0].t() if bias is None else torch.addmm(bias[:, None], weights[0], rows[0].t())
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        columns.addmm_(weight, row.t())
    return columns.t()[:count]
