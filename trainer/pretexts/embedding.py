"""Map → embedding: what the scorer is given on the device, and so what tasks about whole windows have to shape."""

import torch
from torch import Tensor


def embed(encoded: Tensor) -> Tensor:
    """(B, D, T) → (B, 2 D): what the encoder saw on average and how restless that was, as a logarithm: spreads span decades."""
    mean = encoded.mean(2)
    spread = 0.5 * ((encoded - mean.unsqueeze(2)).square().mean(2) + 1e-4).log()
    return torch.cat([mean, spread], dim=1)
