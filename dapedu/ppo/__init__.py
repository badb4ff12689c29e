"""RLHF with PPO, the baseline of this book, and RLOO, its simple relative.

`objective` has the formulas, `rollouts` a step's completions and what each of the four models says of them, `training`
the loop.
"""

from dapedu.ppo.objective import (
    adapted_kl_coef,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_loss,
    kl_shaped_rewards,
    masked_mean,
    normalised,
    rloo_advantages,
)
from dapedu.ppo.rollouts import Rollouts, collect
from dapedu.ppo.settings import PPOSettings, RLOOSettings
from dapedu.ppo.training import train_ppo, train_rloo

__all__ = [
    "PPOSettings",
    "RLOOSettings",
    "Rollouts",
    "adapted_kl_coef",
    "clipped_policy_loss",
    "clipped_value_loss",
    "collect",
    "gae",
    "kl_loss",
    "kl_shaped_rewards",
    "masked_mean",
    "normalised",
    "rloo_advantages",
    "train_ppo",
    "train_rloo",
]
