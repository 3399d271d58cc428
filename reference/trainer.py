"""The former place of the training loop: `training.trainer`."""

from .training.trainer import *  # noqa: F403
