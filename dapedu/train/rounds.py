"""Sample, score, rank, train, and again: learning from one's own completions without a policy gradient.

What `train_in_rounds` is for: rejection sampling, SLiC-HF's sample-and-rank, RRHF, CLICK, DPO in rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dapedu.data import Record
from dapedu.models import score
from dapedu.sampling import Samples, sample
from dapedu.train.loop import train_preference
from dapedu.train.methods import METHODS
from dapedu.train.ranking import best_and_worst, best_of, ranked
from dapedu.train.settings import Settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reward = Callable[[Samples], Tensor | Sequence[float]]

_APART = 1_000_003  # seeds of two rounds, so that no round repeats another seed's


@dataclass(frozen=True)
class Round:
    """What one round of `train_in_rounds` has drawn and learned from."""

    samples: Samples  # the candidates of each prompt next to one another
    rewards: Tensor  # of the candidates, (prompts, candidates), float64
    records: list[Record]  # trained on
    log: list[dict[str, float]]  # of the training, as `train_preference` returns it


def train_in_rounds(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Reward,
    *,
    method: str,
    strengths: Mapping[str, float] | None = None,
    settings: Settings | None = None,
    rounds: int = 1,
    candidates: int = 4,
    rank: Callable[[Samples, Tensor], list[Record]] | None = None,
    reference: PreTrainedModel | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    after: Callable[[Round], object] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[Round]:
    """Let a model write candidates, have them judged, train it on the ranking; each round by the model of the last.

    Args:
        model: trained in place.
        tokenizer: the model's.
        prompts: divided evenly among the rounds, in their order.
        reward: from samples to one number each; larger is better.
        method: a key of `METHODS`.
        strengths: its hyperparameters where they differ from its defaults.
        settings: of each round's training; the seed is the first round's.
        rounds: at least 1.
        candidates: completions a prompt, at least 2.
        rank: what a method learns from, of samples and their rewards, (prompts, candidates); by default `best_of`,
            `best_and_worst` or `ranked`, whichever has the records that the method needs.
        reference: of a method that has one: the same in every round; by default the model that begins the round.
        max_new_tokens, temperature, top_k: of the sampling, as `dapedu.sampling.sample`.
        after: called with each round when it is over, while the model is what the round has made of it.
        output: folder for one of `train_preference` a round, `round-1` and so on; None keeps nothing on disk.
        resume: go on from output's last checkpoint, if there is one; the rounds before are sampled once more, not
            trained, and everything ends as if never interrupted.
        progress: show a bar.

    Returns:
        A `Round` each.

    Raises:
        ValueError: rounds or candidates is too small, there are fewer prompts than rounds, reward does not give one
            number a sample, no record is left to learn from; as `dapedu.sampling.sample` and `train_preference`.
        RunError, DivergedError, KeyboardInterrupt: as `train_preference`.

    Source: arXiv:2304.05302, §3, for one round and several; arXiv:2402.04792, Algorithm 1, for DPO in many with one
    reference.
    """
    from tqdm.auto import tqdm

    if method not in METHODS:
        raise ValueError(f"train_in_rounds: no method {method!r}; there are {', '.join(METHODS)}")
    for name, number, least in (("rounds", rounds, 1), ("candidates", candidates, 2)):
        if number < least:
            raise ValueError(f"train_in_rounds: {name} is {number}, expected at least {least}")
    if len(prompts) < rounds:
        raise ValueError(f"train_in_rounds: {len(prompts)} prompts for {rounds} rounds, expected one a round or more")
    settings = settings or Settings()
    rank = rank or _RANK[METHODS[method].records]
    share, done = len(prompts) // rounds, []
    for number in tqdm(range(rounds), unit="round", desc=method, disable=not progress):
        seed = settings.seed + _APART * number
        asked = [prompt for prompt in prompts[number * share : (number + 1) * share] for _ in range(candidates)]
        samples = sample(
            model, tokenizer, asked, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        rewards = _judged(reward, samples).view(-1, candidates)
        records = rank(samples, rewards)
        if not records:
            raise ValueError(f"train_in_rounds: the candidates of round {number + 1} leave no record to learn from")
        log = train_preference(
            model,
            tokenizer,
            records,
            method=method,
            strengths=strengths,
            settings=replace(settings, seed=seed),
            reference=reference,
            output=None if output is None else Path(output) / f"round-{number + 1}",
            resume=resume,
            progress=False,
        )
        done.append(Round(samples, rewards, records, log))
        if after is not None:
            after(done[-1])
    return done


def minus_kl(
    reward: Reward, policy: PreTrainedModel | PeftModel, reference: PreTrainedModel | PeftModel, *, beta: float
) -> Reward:
    """A reward that also counts how far the policy is from a reference: r − β log π/π_ref.

    Its mean over the policy's own samples is RLHF's objective.

    Args:
        reward: from samples to one number each.
        policy: as it is whenever the reward is asked; what `train_in_rounds` trains.
        reference: frozen, another model than the policy.
        beta: KL weight β, ≥ 0.

    Returns:
        Such a function.

    Raises:
        ValueError: beta is negative.

    Source: arXiv:2304.05302, §5, "RRHF with a KL term"; arXiv:1909.08593, Eq. 2.
    """
    if not beta >= 0:
        raise ValueError(f"minus_kl: beta is {beta}, expected ≥ 0")

    def of_samples(samples: Samples) -> Tensor:
        log_ratios = score(policy, samples.sequences) - score(reference, samples.sequences)
        return torch.as_tensor(reward(samples), dtype=torch.float64) - beta * log_ratios.double()

    return of_samples


_RANK = {"demonstrations": best_of, "preferences": best_and_worst, "rankings": ranked}


def _judged(reward: Reward, samples: Samples) -> Tensor:
    rewards = torch.as_tensor(reward(samples), dtype=torch.float64)
    if rewards.shape != (len(samples),):
        raise ValueError(
            f"train_in_rounds: reward gives shape {tuple(rewards.shape)}, expected {(len(samples),)}, one a sample"
        )
    if rewards.isnan().any():
        raise ValueError(f"train_in_rounds: reward gives NaN for sample {int(rewards.isnan().nonzero()[0])}")
    return rewards.cpu()
