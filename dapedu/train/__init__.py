"""Training a language model by supervision or by preferences, or a reward model: one loop, the method an argument.

`methods` says what each method asks of a batch, `loop` is the loop, `checkpoints` what survives an interruption.
"""

from dapedu.train.checkpoints import RunError
from dapedu.train.examples import Examples, batches_of_epoch, parts_of_batch
from dapedu.train.loop import DivergedError, train_preference, train_sft
from dapedu.train.methods import METHODS, Method, Scores
from dapedu.train.reward import train_reward
from dapedu.train.settings import REWARD_SETTINGS, SFT_SETTINGS, Plan, Settings, plan

__all__ = [
    "METHODS",
    "REWARD_SETTINGS",
    "SFT_SETTINGS",
    "DivergedError",
    "Examples",
    "Method",
    "Plan",
    "RunError",
    "Scores",
    "Settings",
    "batches_of_epoch",
    "parts_of_batch",
    "plan",
    "train_preference",
    "train_reward",
    "train_sft",
]
