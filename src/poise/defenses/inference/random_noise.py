"""Random noise on the input, fresh for every query."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.defenses.inference.base import InputDefense
from poise.errors import InputError


class RandomNoise(InputDefense):
    """f(clip(x + sigma v)), v ~ N(0, I) drawn anew at every call (RND).

    Qin et al. 2021, "Random Noise Defense Against Query-Based Black-Box Attacks", section 3; the AAA paper (Chen et al.
    2022) calls sigma the variance, its code uses the standard deviation, and so does this. An attacker with gradients
    averages several of them: `poise.searches.PGD(source=EOT(20))`. Accuracy and every other figure of the defended
    model are random: report the mean of several seeds.

    Deviation: the noise has no generator of its own. It comes from torch's generator of the images' device, which a
    target's session seeds and restores, so that a run repeats to the last bit and queries of one image still differ.

    Args:
        sigma: standard deviation in the units of a pixel, at most the width of `bounds`; .02 for a plainly trained
            model, .05 for an adversarially trained one in the AAA paper. With 0 nothing is drawn.
        bounds: lowest and highest legal pixel value; the noisy image is clipped to them.

    Raises:
        InputError: sigma or bounds are not as above.

    Example:
        >>> noise = RandomNoise(0.02)
        >>> x = torch.full((1, 1, 2, 2), 0.5)
        >>> torch.equal(noise(x), noise(x))
        False
    """

    stochastic = True
    exportable = False

    def __init__(self, sigma: float = 0.02, *, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(bounds)
        width = self.bounds[1] - self.bounds[0]
        if not 0 <= sigma <= width:
            hint = f" (did you mean {sigma:g}/255?)" if 1 <= sigma <= 255 else ""
            raise InputError(f"RandomNoise: sigma must be in [0, {width:g}], got {sigma}{hint}")
        self.sigma = float(sigma)
        if self.sigma == 0:
            self.stochastic, self.exportable = False, True  # type: ignore[misc]  # this instance promises more

    def _map(self, x: Tensor) -> Tensor:
        noisy = x + self.sigma * torch.randn_like(x) if self.sigma else x
        return noisy.clamp(*self.bounds)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}"
