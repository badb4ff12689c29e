"""Training a language model by supervision or by preferences, or a reward model: one loop, the method an argument.

`methods` says what each method asks of a batch, `loop` is the loop, `checkpoints` what survives an interruption;
`rounds` samples, judges, ranks and trains, again and again.
"""

from dapedu.train.checkpoints import RunError
from dapedu.train.examples import Examples, batches_of_epoch, parts_of_batch
from dapedu.train.loop import DivergedError, train_preference, train_sft
from dapedu.train.methods import METHODS, Method, Scores
from dapedu.train.ranking import best_and_worst, best_of, by_likelihood, ranked, two_by_two
from dapedu.train.reward import train_reward
from dapedu.train.rounds import Round, minus_kl, train_in_rounds
from dapedu.train.settings import REWARD_SETTINGS, SFT_SETTINGS, Plan, Settings, plan

__all__ = [
    "METHODS",
    "REWARD_SETTINGS",
    "SFT_SETTINGS",
    "DivergedError",
    "Examples",
    "Method",
    "Plan",
    "Round",
    "RunError",
    "Scores",
    "Settings",
    "batches_of_epoch",
    "best_and_worst",
    "best_of",
    "by_likelihood",
    "minus_kl",
    "parts_of_batch",
    "plan",
    "ranked",
    "train_in_rounds",
    "train_preference",
    "train_reward",
    "train_sft",
    "two_by_two",
]
