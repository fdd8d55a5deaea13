"""Causal convolutions as plain matrix products on channels-last blocks.

A convolution whose kernel is `taps * stride` reads, for each output step, `taps` consecutive blocks of `stride`
samples. On a channels-last tensor such a block is a contiguous vector of `stride * C` numbers. So the convolution is
the sum of `taps` matrix products of views, without im2col; a transposed convolution is the same sum the other way
round, and its output is a view. Once arranged, both keep their weights in a memory format in which the matrices are
views too; until then, and in any other order, the results are the same but take longer.

Where an adapter, a hook or a parametrization takes part, the convolution itself is called, on the same inputs.
"""

import functools
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .graphs import is_captured
from .matmul import call_convolution, is_plain, sum_of_products


class ConvState(NamedTuple):
    """The inputs that the next outputs of a convolution still depend on.

    previous: Tensor, shape = (B, padding_total, C), the last inputs, right-aligned.
    started: Tensor, shape = (B,), bool: has a first input been seen? Only where the padding repeats it.
    """

    previous: Tensor
    started: Tensor | None


class _ChannelsLastConv(nn.Module):
    """What both kinds of convolution share: the weight's memory format.

    `conv` holds the parameters. It is called where it is not plain, and then must give what its class would give, for
    its kernel, stride and dilation.
    """

    conv: nn.Conv1d | nn.ConvTranspose1d
    memory_order: tuple[int, int, int]  # of the weight's dimensions, outermost first
    elu: bool  # activate the input first

    @torch.inference_mode(False)  # the weight must stay fit for training
    @torch.no_grad()
    def arrange_weight(self) -> None:
        """Lay the weight out in memory so that its matrices are views with contiguous rows. Its shape stays."""
        weight = None if is_parametrized(self.conv) else getattr(self.conv, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.is_inference():
            return  # computed, or made for inference alone; it serves in any order of memory
        arranged = weight.permute(self.memory_order)
        if not arranged.is_contiguous() and weight.device.type != "meta":
            inverse = [self.memory_order.index(dimension) for dimension in range(3)]
            weight.data = arranged.contiguous().permute(inverse)

    def _by_tap(self) -> Tensor:
        """The weight in memory order."""
        return self.conv.weight.permute(self.memory_order)

    @property
    def scale(self) -> Tensor | None:
        """Of an 8-bit weight: Tensor, shape = (out_channels,), of a transposed one (kernel, out_channels)."""
        conv = self.conv
        return cast(Tensor, conv.weight_scale) if conv.weight.dtype == torch.int8 else None

    def _activate(self, x: Tensor) -> Tensor:
        return F.elu(x) if self.elu else x

    def _after(self, previous: Tensor, x: Tensor) -> Tensor:
        """x: Tensor, shape = (B, T, C), activated, after the inputs that came before it."""
        if not self.elu or torch.is_grad_enabled() or is_captured():
            return torch.cat([previous, self._activate(x)], dim=1)
        # The same in one pass over memory: the activation writes where the concatenation would copy it to.
        steps = previous.shape[1]
        whole = x.new_empty(x.shape[0], steps + x.shape[1], x.shape[2])
        whole[:, :steps] = previous
        torch.ops.aten.elu.out(x, out=whole[:, steps:])
        return whole

    def _new_state(self, x: Tensor, steps: int, replicate: bool = False) -> ConvState:
        previous = x.new_zeros(x.shape[0], steps, x.shape[2])
        started = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device) if replicate else None
        return ConvState(previous, started)


class CausalConv1d(_ChannelsLastConv):
    """A convolution that sees the past alone: `padding_total` samples before the first one are silence, or repeat it.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, bias: as for `torch.nn.Conv1d`. With a stride the
            kernel is a multiple of it and the dilation is 1.
        pad_mode: "constant" for silence before the first sample, "replicate" to repeat that sample.
        elu: apply an ELU to the input first.
    """

    memory_order = (0, 2, 1)  # out_channels, kernel, in_channels: torch's 1-d channels-last format

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        pad_mode: str = "constant",
        bias: bool = True,
        elu: bool = False,
    ) -> None:
        super().__init__()
        self.elu = elu
        assert kernel_size % stride == 0 and (stride == 1 or dilation == 1), (kernel_size, stride, dilation)
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, dilation=dilation, bias=bias)
        self.in_channels = in_channels
        self.stride = stride
        self.dilation = dilation
        self.taps = kernel_size // stride
        self.pad_mode = pad_mode
        self.padding_total = (kernel_size - 1) * dilation + 1 - stride

    def forward(self, x: Tensor, state: ConvState | None) -> tuple[Tensor, ConvState | None]:
        """x: Tensor, shape = (B, T, C), T a multiple of the stride -> Tensor, shape = (B, T / stride, out_channels)."""
        if self.padding_total:
            x, state = self._with_past(x, state)
        else:
            x = self._activate(x)
        conv = self.conv
        if not is_plain(conv):
            self._refuse_other_dilations()
            return call_convolution(conv, x), state
        # A reshape by other means: these tell torch, for any length, what the shape is.
        blocks = x if self.stride == 1 else x.unfold(1, self.stride, self.stride).transpose(2, 3).flatten(2)
        steps = blocks.shape[1] - (self.taps - 1) * self.dilation
        views = [blocks[:, tap * self.dilation :][:, :steps] for tap in range(self.taps)]
        weight = self._by_tap().reshape(-1, self.taps, blocks.shape[2]).transpose(0, 1)
        scale = self.scale
        scale = None if scale is None else scale.expand(self.taps, -1)
        return sum_of_products(views, weight, conv.bias, scale), state

    def _refuse_other_dilations(self) -> None:
        """Raise if an adapter convolves without our dilation, as those of peft do."""
        kernel_size = (self.taps * self.stride,)
        for layer in self.conv.modules():
            if isinstance(layer, nn.Conv1d) and layer.kernel_size == kernel_size and layer.dilation[0] != self.dilation:
                raise ValueError(
                    f"An adapter ({type(self.conv).__name__}) on a convolution of dilation {self.dilation} convolves"
                    f" with dilation {layer.dilation[0]}: both must see the same samples. Leave this layer out of"
                    " target_modules."
                )

    def _with_past(self, x: Tensor, state: ConvState | None) -> tuple[Tensor, ConvState]:
        if state is None:
            state = self._new_state(x, self.padding_total, replicate=self.pad_mode == "replicate")
        previous, started = state
        if started is not None:
            previous = torch.where(started.view(-1, 1, 1), previous, self._activate(x[:, :1]))
            started = torch.ones_like(started)
        x = self._after(previous, x)
        return x, ConvState(_apart(x[:, -self.padding_total :]), started)


class CausalConvTranspose1d(_ChannelsLastConv):
    """A transposed convolution trimmed on the right: an input step reaches its own block of outputs and later ones.

    Args:
        in_channels, out_channels, kernel_size, stride, groups, bias: as for `torch.nn.ConvTranspose1d`. The kernel is
            a multiple of the stride.
        elu: apply an ELU to the input first.
    """

    memory_order = (2, 1, 0)  # kernel, out_channels / groups, in_channels

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        groups: int = 1,
        bias: bool = True,
        elu: bool = False,
    ) -> None:
        super().__init__()
        self.elu = elu
        assert kernel_size % stride == 0, (kernel_size, stride)
        self.conv = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
        self.stride = stride
        self.groups = groups
        self.taps = kernel_size // stride
        self.padding_total = self.taps - 1

    def forward(self, x: Tensor, state: ConvState | None) -> tuple[Tensor, ConvState]:
        """x: Tensor, shape = (B, T, C) -> Tensor, shape = (B, T * stride, out_channels)."""
        steps = x.shape[1]
        previous = self._new_state(x, self.padding_total).previous if state is None else state.previous
        x = self._after(previous, x)
        state = ConvState(_apart(x[:, steps:]), None)
        if not is_plain(self.conv):
            y = call_convolution(self.conv, x)  # its outputs before and after those of the new steps are not whole
            return y[:, self.padding_total * self.stride :][:, : steps * self.stride], state
        views = [x[:, self.padding_total - tap :][:, :steps] for tap in range(self.taps)]
        y = self._product(views) if self.groups == 1 else self._grouped_product(views)
        return y.flatten(1, 2), state

    def _product(self, views: list[Tensor]) -> Tensor:
        """Tensors, shape = (B, T, C) -> Tensor, shape = (B, T, stride, out_channels)."""
        weight = self._by_tap().reshape(self.taps, -1, views[0].shape[2])
        scale = self.scale
        scale = None if scale is None else scale.reshape(self.taps, -1)
        bias = self.conv.bias
        y = sum_of_products(views, weight, None if bias is None else bias.repeat(self.stride), scale)
        return y.unflatten(2, (self.stride, -1))

    def _grouped_product(self, views: list[Tensor]) -> Tensor:
        """As [`_product`]."""
        batch, steps, channels = views[0].shape
        weight = self.conv.weight  # (C, out_channels / groups, taps * stride)
        if self.groups == channels == weight.shape[1] * self.groups:
            matrices = weight[:, 0].t().split(self.stride)  # each (stride, C)
            products = [view[:, :, None] * matrix for view, matrix in zip(views, matrices, strict=True)]
        else:
            matrices = weight.view(self.groups, channels // self.groups, -1, self.taps, self.stride).unbind(3)
            products = [
                torch.einsum("btgi,gios->btsgo", view.reshape(batch, steps, self.groups, -1), matrix).flatten(3)
                for view, matrix in zip(views, matrices, strict=True)
            ]
        y = functools.reduce(torch.add, products)
        return y if self.conv.bias is None else y + self.conv.bias


def _apart(x: Tensor) -> Tensor:
    """A copy of a part, with the strides that a tensor of its shape has by itself: graphs are compiled for strides."""
    return x.clone(memory_format=torch.contiguous_format)
