"""By what a quantizer is known to those who keep its codes."""

import hashlib
import json

from torch import nn


def quantizer_digest(rvq: nn.Module, frames_per_code: int, pooling: str = "mean") -> str:
    """What codes depend on, besides the mel's settings, as sha256 in hexadecimal digits: the
    quantizer's settings, its weights in float32, and how frames become codes.

    Args:
        rvq: with its constructor's arguments as `config`.
        frames_per_code: mel frames of a code.
        pooling: how they are joined.
    """
    settings = [rvq.config, frames_per_code, pooling]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in sorted(rvq.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
