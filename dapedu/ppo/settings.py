"""How PPO and RLOO train."""

from __future__ import annotations

import math
from dataclasses import dataclass

KL_PLACES = ("reward", "loss")


@dataclass(frozen=True)
class RLOOSettings:
    """How `train_rloo` trains. A step samples a batch of completions and learns from it; β is not a setting."""

    steps: int = 150
    batch_size: int = 128  # completions a step
    samples_per_prompt: int = 4
    epochs: int = 1  # how often a step's completions are learnt from
    minibatches: int = 1  # into which each epoch cuts them
    lr: float = 1e-3  # AdamW's at the first step; falls linearly
    final_lr: float = 0.1  # of lr, at the last step; 1 for a constant one
    clip: float = 1.0  # largest norm of a gradient; inf for no limit
    clip_range: float = 0.2  # ε: how far a token's probability may move in a step with a gain, as a share; or inf
    normalise_rewards: bool = False  # to a standard deviation of 1 in each batch, the KL term with them
    normalise_advantages: bool = False  # to mean 0 and standard deviation 1 in each batch
    kl_in: str = "reward"  # or "loss", where β weighs the KL against what is left of the reward when it is normalised
    target_kl: float | None = None  # nats; None keeps β as it is
    max_new_tokens: int = 64  # longest completion
    seed: int = 0  # of prompts, samples and minibatches
    log_every: int = 1  # steps
    evaluate_every: int = 50  # steps between calls of the metrics, if there are any
    checkpoint_every: int = 50  # steps

    def __post_init__(self) -> None:
        name = type(self).__name__
        self._check_counts(name)
        for field in ("lr", "final_lr", "clip", "clip_range"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{name}: {field} is {getattr(self, field)}, expected a positive number")
        if not (math.isfinite(self.lr) and self.final_lr <= 1):
            raise ValueError(f"{name}: lr is {self.lr}, final_lr {self.final_lr}; expected finite, and at most 1")
        if self.kl_in not in KL_PLACES:
            raise ValueError(f"{name}: kl_in is {self.kl_in!r}, expected one of {', '.join(KL_PLACES)}")
        if self.normalise_rewards and self.batch_size < 2:
            raise ValueError(f"{name}: batch_size is 1, expected at least 2: one reward has no standard deviation")
        if self.target_kl is not None and not self.target_kl > 0:
            raise ValueError(f"{name}: target_kl is {self.target_kl}, expected a positive number or None")

    def _check_counts(self, name: str) -> None:
        counts = ("steps", "batch_size", "samples_per_prompt", "epochs", "minibatches", "max_new_tokens")
        for field in (*counts, "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}: {field} is {getattr(self, field)}, expected at least 1")
        if self.batch_size % self.samples_per_prompt or self.batch_size < self.minibatches:
            raise ValueError(
                f"{name}: batch_size is {self.batch_size}, expected a multiple of samples_per_prompt "
                f"({self.samples_per_prompt}) and at least as many as minibatches ({self.minibatches})"
            )


@dataclass(frozen=True)
class PPOSettings(RLOOSettings):
    """How `train_ppo` trains: what RLOO has, and what a value model asks for."""

    steps: int = 100
    samples_per_prompt: int = 1
    epochs: int = 2
    minibatches: int = 2
    normalise_advantages: bool = True
    value_lr: float = 1e-3  # the value model's; falls as lr does
    value_clip_range: float = 0.2  # ε of the value loss, in the rewards' unit; or inf
    gae_lambda: float = 0.95  # λ

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("value_lr", "value_clip_range"):
            if not getattr(self, field) > 0:
                raise ValueError(f"PPOSettings: {field} is {getattr(self, field)}, expected a positive number")
        if not math.isfinite(self.value_lr):
            raise ValueError(f"PPOSettings: value_lr is {self.value_lr}, expected a finite number")
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"PPOSettings: gae_lambda is {self.gae_lambda}, expected from 0 to 1")
