"""What programs use of the quantizer of `moshi`'s model, and what a call of that model gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .moshi import KyutaiMimi


@dataclass
class QuantizedResult:
    """What a call of [`KyutaiMimi`] gives.

    x: Tensor, shape = (B, C, N), the decoded audio.
    codes: Tensor, shape = (B, K, F), int64.
    bandwidth: kbit/s of the codes.
    penalty: the commitment, 0 outside training mode.
    metrics: always empty.
    """

    x: Tensor
    codes: Tensor
    bandwidth: Tensor
    penalty: Tensor | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


class KyutaiQuantizer:
    """What programs use of `mimi.quantizer`: batch first, with the number of codebooks of its [`KyutaiMimi`]."""

    def __init__(self, mimi: KyutaiMimi) -> None:
        self.mimi = mimi

    @property
    def num_codebooks(self) -> int:
        return self.mimi.num_codebooks

    @property
    def total_codebooks(self) -> int:
        return self.mimi.total_codebooks

    @property
    def cardinality(self) -> int:
        return self.mimi.cardinality

    def set_num_codebooks(self, n: int) -> None:
        """As [`KyutaiMimi.set_num_codebooks`]."""
        self.mimi.set_num_codebooks(n)

    def encode(self, x: Tensor) -> Tensor:
        """x: Tensor, shape = (B, D, F), latents -> Tensor, shape = (B, K, F), int64."""
        return self.mimi.model.quantizer.encode(x, self.num_codebooks).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes: Tensor, shape = (B, K, F), integers -> Tensor, shape = (B, D, F)."""
        return self.mimi.model.quantizer.decode(codes)


__all__ = ["KyutaiQuantizer", "QuantizedResult"]
