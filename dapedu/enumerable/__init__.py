"""World 2, the enumerable: a real, tiny GPT-2 whose every completion can be listed, so that nothing is estimated.

A prompt is two symbols of a small alphabet, a completion a few symbols more. Z(x), the RLHF optimum, both KLs,
expected rewards and win rates are sums over all completions, and a loss can be taken over all pairs there are.
Responses are completions here, one table of log-probabilities a prompt, so `dapedu.evaluate` works unchanged.
"""

from dapedu.enumerable.optima import (
    Frontier,
    best_of_n_policies,
    frontier,
    frontier_reward,
    gold_wins,
    ipo_optima,
    log_partition,
    probabilities,
    rlhf_optima,
    wins_over,
)
from dapedu.enumerable.text import make_tokenizer, prompt_texts, reward_of_samples
from dapedu.enumerable.training import (
    SampledPairs,
    expected_loss,
    fit_humans,
    minimise,
    pair_weights,
    sample_pairs,
    sampled_loss,
)
from dapedu.enumerable.world import World, completion_logps, completion_rewards, make_world

__all__ = [
    "Frontier",
    "SampledPairs",
    "World",
    "best_of_n_policies",
    "completion_logps",
    "completion_rewards",
    "expected_loss",
    "fit_humans",
    "frontier",
    "frontier_reward",
    "gold_wins",
    "ipo_optima",
    "log_partition",
    "make_tokenizer",
    "make_world",
    "minimise",
    "pair_weights",
    "probabilities",
    "prompt_texts",
    "reward_of_samples",
    "rlhf_optima",
    "sample_pairs",
    "sampled_loss",
    "wins_over",
]
