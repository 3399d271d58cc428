"""Vocoders in plain PyTorch."""
