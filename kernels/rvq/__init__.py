"""Kernels of the residual vector quantizer."""
