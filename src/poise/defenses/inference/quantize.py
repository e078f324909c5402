"""Grey levels: what is between two of them does not reach the model."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from poise.defenses.inference.base import InputDefense
from poise.errors import InputError, one_of

_GUARD = 1e-4  # of one level: above float32's error of 255 x (3e-5), far below anything that a pixel means


class Quantize(InputDefense):
    """Images on the grid of 2^bits grey levels, as a camera or an image file would deliver them.

    With L = 2^bits - 1 and x in [0, 1], clipped first: "round" is floor(L x + 1/2) / L, the nearest level;
    "floor" is floor(L x + 1e-4) / L, what the AAA paper's code does (Chen et al. 2022, section 5.1).

    Deviation: the released code has no 1e-4 and runs in float64 where numpy promotes. In pure float32
    floor(255 (k/255 - 8/255)) loses one level for 15 of the 256 values of k, and the model sees a change of 9/255
    where the attacker made one of 8/255. Types below float32 are computed in float32.

    The derivative is 0 wherever there is one, and so is autograd's. That stops a careless attacker only:
    `poise.targets.BPDA(Quantize(), nn.Identity())` in its place gives the gradient straight through.

    Args:
        bits: 1 to 8.
        mode: "round" or "floor".
        bounds: values of the lowest and the highest level.

    Raises:
        InputError: an argument is not as above.

    Example:
        >>> import torch
        >>> 255 * Quantize()(torch.tensor([[[[0.0, 0.4, 2.0]]]]) / 255)
        tensor([[[[0., 0., 2.]]]])
        >>> Quantize(1)(torch.tensor([[[[0.49, 0.5]]]])), Quantize(1, mode="floor")(torch.tensor([[[[0.5, 1.0]]]]))
        (tensor([[[[0., 1.]]]]), tensor([[[[0., 1.]]]]))
    """

    differentiable = False

    def __init__(
        self, bits: int = 8, *, mode: Literal["round", "floor"] = "round", bounds: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
            raise InputError(f"Quantize: bits must be an integer in [1, 8], got {bits}")
        if mode not in ("round", "floor"):
            raise one_of("Quantize: mode", mode, ["round", "floor"])
        super().__init__(bounds)
        self.bits = bits
        self.mode = mode

    def _map(self, x: Tensor) -> Tensor:
        (low, high), levels = self.bounds, 2**self.bits - 1
        values = x.float() if x.dtype.itemsize < 4 else x
        unit = (values.clamp(low, high) - low) / (high - low)
        level = (unit * levels + (0.5 if self.mode == "round" else _GUARD)).floor()
        grid: Tensor = level / levels * (high - low) + low
        return grid.to(x.dtype)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, mode={self.mode!r}"
