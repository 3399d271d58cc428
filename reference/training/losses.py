"""HiFi-GAN's training losses: sums over discriminators, as the published weights assume.

Kong et al. (2020), section 2.4: least-squares GAN (equations 1-2), feature matching (4), mel L1
(3).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

FEATURE_MATCHING_WEIGHT = 2.0
MEL_WEIGHT = 45.0
QUIET = 0.01  # root-mean-square mel magnitude; speech has about 0.1


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Sum over discriminators of mean (D(real) - 1)^2 + mean D(fake)^2."""
    terms = [(r - 1).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).sum()


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """Sum over discriminators of mean (D(fake) - 1)^2."""
    return torch.stack([(f - 1).square().mean() for f in fake]).sum()


def feature_matching_loss(
    real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Sum over discriminators and layers of the mean absolute difference, unweighted."""
    terms = [
        F.l1_loss(f, r.detach())
        for real_maps, fake_maps in zip(real, fake, strict=True)
        for r, f in zip(real_maps, fake_maps, strict=True)
    ]
    return torch.stack(terms).sum()


def spectral_convergence(made: Tensor, real: Tensor) -> Tensor:
    """Relative Frobenius error of mel magnitudes, from log-mels (B, n_mels, T); batch mean.

    Arik, Jun and Diamos, "Fast spectrogram inversion using multi-head convolutional neural
    networks" (2018). Loud bins decide it, where L1 in the logarithm weighs all alike. An item
    quieter than QUIET counts as that loud: silence has no relative error.
    """
    difference = torch.linalg.vector_norm(made.exp() - real.exp(), dim=(1, 2))
    level = torch.linalg.vector_norm(real.exp(), dim=(1, 2))
    return (difference / level.clamp(min=QUIET * real[0].numel() ** 0.5)).mean()
