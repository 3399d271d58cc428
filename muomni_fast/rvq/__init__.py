"""The residual vector quantizer on the fastest backend."""
