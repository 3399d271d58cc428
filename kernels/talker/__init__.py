"""Kernels of the Talker."""
