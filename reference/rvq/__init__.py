"""The residual vector quantizer in plain PyTorch."""
