"""Prompts, a reward and a value model for the tokenizer of six words, and a run of PPO or RLOO in silence."""

import math

import torch
from torch import Tensor

from dapedu.models import ScalarHead
from dapedu.ppo import PPOSettings, RLOOSettings, train_ppo, train_rloo
from dapedu.sampling import Samples
from tests.words import opinionated

PROMPTS = ["a b", "c", "d e f a", "b b c", "f e"]
BETA = 0.3
SHORT = {"batch_size": 8, "max_new_tokens": 5, "lr": 5e-5}


def opinionated_head() -> ScalarHead:
    """A value model with opinions already, so that its transformer has a gradient at once."""
    head = ScalarHead(opinionated(vocab_size=9, seed=1))
    torch.nn.init.normal_(head.linear.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return head


def reward(samples: Samples) -> Tensor:
    """By the last words drawn and their number, none of it linear."""
    tails = [
        ids[start:] for ids, start in zip(samples.sequences.input_ids, samples.sequences.prompt_lengths, strict=True)
    ]
    return torch.tensor([math.sin(sum(tail)) + 0.5 * len(tail) * (tail[-1] == 1) for tail in tails])


def go(model, tokenizer, *, prompts=PROMPTS, reward=reward, beta=BETA, value_model=None, method="ppo", **options):
    """`train_ppo` or `train_rloo` in silence; options that their settings have go there."""
    kind = PPOSettings if method == "ppo" else RLOOSettings
    settings = {name: options.pop(name) for name in list(options) if name in kind.__dataclass_fields__}
    if method == "ppo":
        options |= {"value_model": value_model}
    train = train_ppo if method == "ppo" else train_rloo
    settings = kind(**SHORT | settings)
    return train(model, tokenizer, prompts, reward, beta=beta, settings=settings, progress=False, **options)


def without_speed(log: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "tokens_s"} for row in log]
