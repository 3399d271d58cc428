"""Triton kernels and their launchers: tensors in, tensors out; no nn.Module, no autograd.

Importing this package does not import triton; each kernel's own module does.
"""
