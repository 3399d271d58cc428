"""Other libraries' models on this library's operations: `accelerate(model)` and `restore(model)`.

A file per family, which says what its model computes; `registry` lists them. No family's package is
imported: a class is known by its name and by what it holds.
"""

from .swap import Report, accelerate, restore

Report.__module__ = "muomni_fast"  # what pickles name

__all__ = ["Report", "accelerate", "restore"]
