"""What a policy is worth and how sure we are: rewards, divergences, win rates, diversity, intervals.

Where a policy can be written down as a table, its expectations are sums; where it can only be sampled, they are means
over samples, with intervals. transformers is imported when a model is sampled, not here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from dapedu.data import Sequences
from dapedu.models import score
from dapedu.sampling import Samples, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DRAWS_AT_ONCE = 4_000_000  # keeps the bootstrap's memory below 100 MB


def expected_reward(probabilities: Tensor, rewards: Tensor) -> Tensor:
    """E_{y~π}[r(y)] where π can be written down.

    Args:
        probabilities: π, shape (..., n_responses).
        rewards: r, shape (n_responses,), or (..., n_responses) that broadcasts with π.

    Returns:
        Shape (...), in the reward's unit.

    Raises:
        ValueError: the numbers of responses differ.

    Source: arXiv:2305.18290, Eq. 3, first term.
    """
    _require_same_responses("expected_reward", probabilities=probabilities, rewards=rewards)
    never = (probabilities == 0) & rewards.isinf()  # 0 · (−∞) = 0: what never happens costs nothing
    return (probabilities * torch.where(never, 0, rewards)).sum(dim=-1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p log(p/q), with 0 log 0 = 0. Not symmetric.

    KL(π‖π_ref), the one that RLHF penalises, is called the reverse KL; KL(π_ref‖π) the forward one.

    Args:
        p, q: probabilities, shapes that broadcast, responses on the last axis.

    Returns:
        Nats, shape (...); ∞ where q is 0 and p is not.

    Raises:
        ValueError: the numbers of responses differ.

    Source: arXiv:2305.18290, Eq. 3, second term.
    """
    _require_same_responses("kl_divergence", p=p, q=q)
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim=-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Total variation ½ Σ |p − q|: the largest difference in the probability of any event.

    Args:
        p, q: probabilities, shapes that broadcast, responses on the last axis.

    Returns:
        Shape (...), from 0 to 1.

    Raises:
        ValueError: the numbers of responses differ.
    """
    _require_same_responses("total_variation", p=p, q=q)
    return 0.5 * (p - q).abs().sum(dim=-1)


def mean_interval(values: Tensor, *, dim: int = 0, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Mean over seeds and the half-width of Student's interval for it.

    Args:
        values: one value a seed along `dim`.
        dim: the axis of the seeds, at least 2 of them.
        level: coverage of the interval, between 0 and 1.

    Returns:
        Mean and half-width, each of values' shape without `dim`.

    Raises:
        ValueError: fewer than two seeds, of which no spread can be told, or level is not between 0 and 1.
    """
    n = values.shape[dim]
    if n < 2:
        raise ValueError(f"mean_interval: values has {n} along axis {dim}, expected at least 2 seeds")
    if not 0 < level < 1:
        raise ValueError(f"mean_interval: level is {level}, expected between 0 and 1")
    quantile = scipy.stats.t.ppf(0.5 + level / 2, df=n - 1)
    return values.mean(dim=dim), quantile * values.std(dim=dim) / n**0.5


def sequence_kl(policy: PreTrainedModel, reference: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Log-ratios log π(y|x) − log π_ref(y|x) of sampled completions, whose mean estimates KL(π‖π_ref).

    The estimate is unbiased if the completions were drawn from the policy itself: at temperature 1, without top-k.
    Single log-ratios may be negative, the KL may not. Completions cut off at a length estimate the KL up to there.

    Args:
        policy: a causal language model.
        reference: another, with the same tokens.
        sequences: drawn from the policy.

    Returns:
        Nats, shape (sequences,).

    Raises:
        ValueError: as `score`.

    Source: arXiv:2305.18290, Eq. 3, second term.
    """
    return score(policy, sequences) - score(reference, sequences)


def win_rate(rewards: Tensor, baseline_rewards: Tensor) -> Tensor:
    """Who wins each comparison of two completions of one prompt; the mean is the win rate.

    Args:
        rewards: of the policy's completions, shape (n,).
        baseline_rewards: of the baseline's, for the same prompts in the same order, shape (n,).

    Returns:
        1 where the policy's reward is larger, 0 where it is smaller, ½ where they are equal; float64, shape (n,).

    Raises:
        ValueError: shapes differ, or a reward is NaN.
    """
    if rewards.shape != baseline_rewards.shape:
        raise ValueError(
            f"win_rate: baseline_rewards has shape {tuple(baseline_rewards.shape)}, expected {tuple(rewards.shape)}"
        )
    if rewards.isnan().any() or baseline_rewards.isnan().any():
        raise ValueError("win_rate: a reward is NaN, so it neither wins nor loses")
    return (rewards > baseline_rewards).double() + 0.5 * (rewards == baseline_rewards).double()


class Calibration(NamedTuple):
    """What `calibration` finds: one number a bin, bins without pairs left out; float64."""

    confidence: Tensor  # mean predicted probability, (bins,)
    accuracy: Tensor  # share of the predictions that were right, (bins,)
    counts: Tensor  # pairs, (bins,), integers
    error: float  # the expected calibration error, from 0 to 1


def calibration(margins: Tensor, *, bins: int = 10) -> Calibration:
    """Whether a reward model is as sure as it is right.

    Under Bradley–Terry it expects the completion of larger reward to be chosen with probability σ(|h|), h being the
    chosen reward minus the rejected one, and is right if h > 0; where h = 0 it says ½, and is half right. The pairs are
    sorted by that probability into bins, and in each the share that was right is compared with it::

        error = Σ_m |B_m|/n · |accuracy(B_m) − confidence(B_m)|

    Args:
        margins: h of each pair, shape (pairs,); pairs that were trained on tell nothing.
        bins: of equal width, from ½ to 1.

    Returns:
        `Calibration`.

    Raises:
        ValueError: margins is no vector, is empty or has a NaN, or bins is not positive.

    Deviation: the source's bins go from 0 to 1; with two classes none is below ½.

    Source: arXiv:1706.04599, Eq. 3.
    """
    if margins.ndim != 1 or not len(margins):
        raise ValueError(f"calibration: margins has shape {tuple(margins.shape)}, expected (pairs,), at least one")
    if margins.isnan().any():
        raise ValueError("calibration: a margin is NaN, so nothing is predicted")
    if bins < 1:
        raise ValueError(f"calibration: bins is {bins}, expected at least 1")
    margins = margins.detach().cpu().double()
    predicted = torch.sigmoid(margins.abs())
    right = (1 + margins.sign()) / 2
    inner = torch.linspace(0.5, 1, bins + 1, dtype=torch.float64)[1:-1]
    bin_of = torch.bucketize(predicted, inner)  # an edge belongs to the bin below
    counts = torch.bincount(bin_of, minlength=bins)
    filled = counts > 0
    confidence, accuracy = (
        torch.bincount(bin_of, weights=values, minlength=bins)[filled] / counts[filled] for values in (predicted, right)
    )
    error = (counts[filled] * (accuracy - confidence).abs()).sum() / len(margins)
    return Calibration(confidence, accuracy, counts[filled], error.item())


def perplexity(model: PreTrainedModel, sequences: Sequences) -> float:
    """How surprising texts are to a model: exp of the mean of −log π over all their completions' tokens.

    Args:
        model: a causal language model.
        sequences: texts, say people's; longer completions weigh more.

    Returns:
        From 1, for a model that is certain of each token; the vocabulary's size for one that knows nothing.

    Raises:
        ValueError: as `score`, or there are no completion tokens.
    """
    n_tokens = int(sequences.lengths.sum())
    if not n_tokens:
        raise ValueError("perplexity: sequences has no completion tokens")
    return (-score(model, sequences).double().sum() / n_tokens).exp().item()


def distinct_n(completions: Sequence[str], n: int = 4) -> float:
    """Diversity: different n-grams of words over all of them, n-grams counted within completions.

    It falls with the number of words, since n-grams come again: compare sets of as many completions of like length.

    Args:
        completions: words are what stands between spaces.
        n: words in an n-gram.

    Returns:
        From near 0, all the same, to 1, no n-gram twice; NaN if every completion is shorter than n words.

    Raises:
        ValueError: n is not positive.

    Deviation: the source divides by the number of words; for n = 1 that is the same.

    Source: arXiv:1510.03055 (distinct-1 and distinct-2).
    """
    if n < 1:
        raise ValueError(f"distinct_n: n is {n}, expected at least 1")
    words = [completion.split() for completion in completions]
    ngrams = list(itertools.chain.from_iterable(zip(*(w[i:] for i in range(n)), strict=False) for w in words))
    return len(set(ngrams)) / len(ngrams) if ngrams else float("nan")


def bootstrap_interval(
    values: Tensor,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean and its percentile bootstrap interval.

    Values that share a prompt or a training seed are not independent, and an interval that ignores it is too narrow.
    So name their groups: whole groups are drawn then. With few groups, say ten, it is too narrow all the same; for the
    means of a few seeds take `mean_interval`.

    Args:
        values: shape (n,).
        groups: what each value belongs to (its prompt, its seed), n of them; None if every value is independent.
        level: coverage of the interval, between 0 and 1.
        resamples: how many means to draw.
        seed: of the draws.

    Returns:
        Mean, lower and upper end.

    Raises:
        ValueError: values is not a vector, groups does not fit it, there are fewer than two groups or values, or level
            or resamples is out of range.
    """
    if values.ndim != 1:
        raise ValueError(f"bootstrap_interval: values has shape {tuple(values.shape)}, expected (n,)")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap_interval: level is {level}, expected between 0 and 1")
    if resamples < 1:
        raise ValueError(f"bootstrap_interval: resamples is {resamples}, expected at least 1")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"bootstrap_interval: groups has {len(groups)} entries, expected {len(values)}, one a value")
    values = values.detach().cpu().double()
    group = torch.arange(len(values))
    if groups is not None:
        group = torch.from_numpy(np.unique(np.asarray(groups), return_inverse=True)[1])
    sums = torch.bincount(group, weights=values)
    sizes = torch.bincount(group).double()
    n = len(sums)
    if n < 2:
        raise ValueError(f"bootstrap_interval: {n} {'values' if groups is None else 'groups'}, expected at least 2")
    generator = torch.Generator().manual_seed(seed)
    means = []
    for rows in torch.arange(resamples).split(max(1, _DRAWS_AT_ONCE // n)):
        drawn = torch.randint(n, (len(rows), n), generator=generator)
        means.append(sums[drawn].sum(dim=1) / sizes[drawn].sum(dim=1))
    ends = torch.quantile(torch.cat(means), torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64))
    return values.mean().item(), ends[0].item(), ends[1].item()


def measure_policy(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    rewards: Mapping[str, Callable[[Samples], Tensor | Sequence[float]]],
    reference: PreTrainedModel | None = None,
    baseline: Samples | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> tuple[Samples, dict[str, Tensor]]:
    """Sample a policy and measure each completion.

    ========== =======================================================================================
    NAME       each of rewards
    win rate   `win_rate` of the first of rewards against the baseline's completion of the same prompt
    kl         log π − log π_ref, whose mean is KL(π‖π_ref) in nats a completion; only with a reference
    entropy    −log π, whose mean is the entropy of π in nats a completion
    length     tokens, the end-of-sequence token counted
    finished   whether the policy ended it
    ========== =======================================================================================

    KL and entropy are left out at another temperature than 1 or with top-k, where samples are not the policy's own.

    Args:
        policy, tokenizer, temperature, top_k, max_new_tokens, seed: as `sample`.
        prompts: at least one; name a prompt several times for several samples of it.
        rewards: names, and functions from the samples to one number each.
        reference: what the policy started from.
        baseline: samples of the same prompts in the same order.

    Returns:
        The samples, and the rows above, float64, each of shape (prompts,).

    Raises:
        ValueError: as `sample`, baseline has other prompts, or a function of rewards does not give one number a sample.
    """
    if not rewards:
        raise ValueError("measure_policy: rewards is empty, expected at least one")
    if baseline is not None and baseline.prompts != list(prompts):
        raise ValueError("measure_policy: baseline has other prompts; expected samples of the same ones in this order")
    samples = sample(
        policy, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
    )
    values = {name: _rewards(name, reward, samples) for name, reward in rewards.items()}
    if baseline is not None:
        name, reward = next(iter(rewards.items()))
        values["win rate"] = win_rate(values[name], _rewards(name, reward, baseline))
    if temperature == 1 and top_k == 0:
        logps = score(policy, samples.sequences)
        if reference is not None:
            values["kl"] = logps - score(reference, samples.sequences)
        values["entropy"] = -logps
    values["length"] = samples.sequences.lengths
    values["finished"] = torch.tensor(samples.finished)
    return samples, {name: value.double() for name, value in values.items()}


def _rewards(name: str, reward: Callable[[Samples], Tensor | Sequence[float]], samples: Samples) -> Tensor:
    values = torch.as_tensor(reward(samples), dtype=torch.float64).cpu()
    if values.shape != (len(samples),):
        raise ValueError(f"measure_policy: reward {name} gives shape {tuple(values.shape)}, expected {(len(samples),)}")
    return values


def _require_same_responses(function: str, **tensors: Tensor) -> None:
    (first, left), (second, right) = tensors.items()
    if left.shape[-1] != right.shape[-1]:
        raise ValueError(
            f"{function}: {first} has {left.shape[-1]} responses on its last axis, {second} has {right.shape[-1]}"
        )
