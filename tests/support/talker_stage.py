"""A Talker in float64, for comparisons of processes and micro-batches: sums in another order then
agree to many digits.

As a script it is `train.py` with it, for several processes.
"""

from typing import Any

from muomni_fast.reference import Talker, train
from muomni_fast.reference.training.talker_stage import TalkerStage


class Talker64(Talker):
    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.double()


if __name__ == "__main__":
    TalkerStage.model_class = classmethod(lambda cls, backend: Talker64)
    raise SystemExit(train.main())
