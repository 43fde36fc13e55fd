"""Delay compensation: a stale gradient, corrected for what has become of the parameters since.

Pure; runs in the parameter server. Knows nothing of connections or policies.
"""

import torch
from torch import Tensor


def compensate(gradient: Tensor, parameters: Tensor, held: Tensor, dc_lambda: float) -> Tensor:
    """Gradient + λ·gradient⊙gradient⊙(parameters - held); all flat, fp32, of one length.

    `held`: the parameters that the gradient was computed on, w_bak in the paper.
    Source: Zheng et al. 2017 (arXiv:1609.08326).
    """
    return torch.add(gradient, gradient.square().mul_(parameters - held), alpha=dc_lambda)
