"""The former place of training data: `training.data`."""

from .training.data import *  # noqa: F403
