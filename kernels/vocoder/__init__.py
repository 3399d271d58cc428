"""Kernels of the HiFi-GAN generator."""
