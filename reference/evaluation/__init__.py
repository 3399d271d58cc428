"""How speech that codec and vocoder make compares with the original, in figures."""
