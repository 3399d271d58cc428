"""The HiFi-GAN generator on the fastest backend."""
