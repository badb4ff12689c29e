"""RRHF on its own samples, round after round: what a reward that is wrong does to the texts, and what helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dapedu import reviews
from dapedu.data import encode
from dapedu.evaluate import distinct_n, measure_policy, perplexity
from dapedu.experiments.laboratories import measured, prepare
from dapedu.experiments.reviews import SEEDS, by_metric
from dapedu.experiments.rlhf import train_policy, tuned_settings
from dapedu.experiments.units import run_units, scratch
from dapedu.models import load_model
from dapedu.sampling import Samples, sample
from dapedu.train import Settings, minus_kl, train_in_rounds, train_preference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dapedu.train.rounds import Reward

REWARDS: dict[str, Reward] = {
    "gold": reviews.gold_rewards,
    "mild proxy": partial(reviews.proxy_rewards, strength="mild"),
    "strong proxy": partial(reviews.proxy_rewards, strength="strong"),
}
# Of the strong proxy: a KL term of weight β, and the pull of the likelihood term.
REMEDIES: dict[str, dict[str, Any]] = {
    "KL term, β = 0.1": {"beta": 0.1},
    "KL term, β = 0.3": {"beta": 0.3},
    "KL term, β = 1": {"beta": 1.0},
    "half as many steps a round": {"steps": 75},
}
_SHOWN = 6  # prompts whose texts are kept, round by round


def reviews_hacking(
    *,
    seeds: Sequence[int] = SEEDS,
    rewards: Sequence[str] = tuple(REWARDS),
    remedies: Sequence[str] = tuple(REMEDIES),
    rounds: int = 8,
    prompts: int = 512,
    candidates: int = 4,
    steps: int = 150,
    batch_size: int = 16,
    lr: float = 5e-4,
) -> dict[str, Any]:
    """RRHF on its own samples for eight rounds, under three rewards and some remedies: numbers and texts by round."""
    sft = prepare(seeds)
    settings: dict[str, float] = {"rounds": rounds, "prompts": prompts, "candidates": candidates}
    settings |= {"steps": steps, "batch_size": batch_size, "lr": lr}
    cases = {name: {"reward": name, "changed": {}} for name in rewards}
    cases |= {name: {"reward": "strong proxy", "changed": REMEDIES[name]} for name in remedies}
    results: dict[str, Any] = {"sft": by_metric(sft), "runs": {}}
    for name, case in cases.items():
        rows = run_units(hacking_unit, [{"seed": seed, "settings": settings, **case} for seed in seeds])
        results["runs"][name] = by_metric(rows)
    return results


def reviews_teacher(
    *,
    seeds: Sequence[int] = SEEDS,
    prompts: int = 2_048,
    steps: int = 256,
    lrs: Sequence[float] = (1e-4, 3e-4, 1e-3),
    sft_weights: Sequence[float] = (1.0, 0.03),
) -> dict[str, Any]:
    """Imitating a better model's texts, against ranking them with one's own: Alpaca and Wombat in small.

    The teacher is PPO on the gold reward; a second, weaker one is DPO.
    """
    sft = prepare(seeds)
    tuned = tuned_settings()
    teachers = {method: tuned[method] for method in ("PPO, gold reward", "DPO")}
    cases = [
        {
            "seed": seed,
            "teachers": teachers,
            "prompts": prompts,
            "steps": steps,
            "lrs": list(lrs),
            "sft_weights": list(sft_weights),
        }
        for seed in seeds
    ]
    rows = run_units(teacher_unit, cases)
    return {"sft": by_metric(sft)} | {name: by_metric([row[name] for row in rows]) for name in rows[0]}


def hacking_unit(*, seed: int, reward: str, settings: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """One run of `reviews_hacking`.

    Args:
        seed: of the laboratory and of the run.
        reward: a key of `REWARDS`.
        settings: of the rounds and of the training in each.
        changed: one of `REMEDIES`, or nothing.

    Returns:
        A list over the rounds, the SFT model's first, of each metric, of the two proxies and the gold reward among
        them; `texts`, the same of the completions of six test prompts, and these `prompts`.
    """
    values = dict(settings) | dict(changed)
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    policy, _ = load_model(scratch() / f"sft-{seed}")
    judged = REWARDS[reward]
    if "beta" in values:
        judged = minus_kl(judged, policy, reference, beta=values["beta"])
    asked = reviews.draw_prompts(512, split="test", seed=seed)
    found: dict[str, list[Any]] = {}

    def look(*_: object) -> None:
        row = _looked_at(policy, tokenizer, reference, asked, seed)
        for name, value in row.items():
            found.setdefault(name, []).append(value)

    look()
    train_in_rounds(
        policy,
        tokenizer,
        reviews.draw_prompts(values["rounds"] * values["prompts"], split="train", seed=seed),
        judged,
        method="rrhf",
        settings=Settings(
            steps=values["steps"], batch_size=values["batch_size"], lr=values["lr"], seed=seed, kl_samples=0
        ),
        rounds=values["rounds"],
        candidates=values["candidates"],
        after=look,
        progress=False,
    )
    return found | {"prompts": asked[:_SHOWN]}


def _looked_at(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel,
    asked: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Rewards, KL, diversity and perplexity of people's reviews, and the first few texts.

    The gold reward is also taken of two halves of the prompts: a judge may choose a round by the one.
    """
    counted: dict[str, Callable[[Samples], Tensor]] = {
        "thanks": lambda samples: torch.tensor([reviews.count_thanks(text) for text in samples.completions]),
        "malformed": lambda samples: torch.tensor(
            [
                reviews.judge(*row).faults["malformed"] > 0
                for row in zip(samples.prompts, samples.completions, samples.finished, strict=True)
            ]
        ),
    }
    samples, values = measure_policy(
        policy, tokenizer, asked, rewards=REWARDS | counted, reference=reference, seed=seed
    )
    people = reviews.corpus(512, split="test", seed=seed)
    human = encode([r["prompt"] for r in people], [r["completion"] for r in people], tokenizer)
    numbers = {name: round(float(value.mean()), 4) for name, value in values.items()}
    gold = values["gold"]
    return numbers | {
        "gold, one half": round(float(gold[::2].mean()), 4),
        "gold, other half": round(float(gold[1::2].mean()), 4),
        "distinct 4": round(distinct_n(samples.completions), 4),
        "perplexity": round(perplexity(policy, human), 4),
        "texts": samples.completions[:_SHOWN],
    }


def teacher_unit(
    *,
    seed: int,
    teachers: Mapping[str, Mapping[str, Any]],
    prompts: int,
    steps: int,
    lrs: Sequence[float],
    sft_weights: Sequence[float],
) -> dict[str, dict[str, float]]:
    """One laboratory of `reviews_teacher`.

    Args:
        seed: of the laboratory and of all that is drawn.
        teachers: names and settings of `rlhf.METHODS`, the best first.
        prompts: that the teachers answer.
        steps: of the student's training; Wombat's come after Alpaca's, and a longer Alpaca has as many.
        lrs: tried by each student, and chosen by the gold reward on validation prompts.
        sft_weights: of the Wombats' likelihood term; one student each.

    Returns:
        Gold reward, KL and length of the teachers and the students. `Alpaca` imitates the first teacher, `Alpaca,
        longer` goes on, `Wombat` ranks the answers of teachers and students by the gold reward, starting as the longer
        one does; `imitating the best` is supervised on the best of the same answers.
    """
    reference, tokenizer = load_model(scratch() / f"sft-{seed}")
    asked = reviews.draw_prompts(prompts, split="train", seed=seed)
    judged = partial(measured, reference=reference, tokenizer=tokenizer, seed=seed)
    drawn, found = {}, {}
    for name, values in teachers.items():
        teacher = train_policy(seed=seed, method=name, beta=0.5, settings=values)
        drawn[name] = sample(teacher, tokenizer, asked, seed=seed + 4)
        found[f"teacher: {name}"] = judged(teacher)
    first = drawn[next(iter(teachers))]
    imitated = [
        {"prompt": prompt, "completion": text}
        for prompt, text in zip(first.prompts, first.completions, strict=True)
        if text
    ]

    def student(records: Any, method: str, start: Any, lr: float, **strengths: float) -> Any:
        policy = start()
        plan = Settings(steps=steps, lr=lr, seed=seed, kl_samples=0)
        train_preference(policy, tokenizer, records, method=method, strengths=strengths, settings=plan, progress=False)
        return policy

    def best(trials: Sequence[Any]) -> Any:
        return max(trials, key=lambda policy: judged(policy, split="validation")["gold"])

    def sft() -> Any:
        return load_model(scratch() / f"sft-{seed}")[0]

    alpaca = best([student(imitated, "sft", sft, lr) for lr in lrs])

    def from_alpaca() -> Any:
        policy = sft()
        policy.load_state_dict(alpaca.state_dict())
        return policy

    own = {
        "SFT": sample(reference, tokenizer, asked, seed=seed + 5),
        "Alpaca": sample(alpaca, tokenizer, asked, seed=seed + 6),
    }
    answers = [*drawn.values(), *own.values()]
    rewards = torch.stack([reviews.gold_rewards(samples) for samples in answers], dim=1)
    rankings, demonstrations = [], []
    for row, prompt in enumerate(asked):
        texts = [samples.completions[row] for samples in answers]
        if all(texts):
            rankings.append({"prompt": prompt, "completions": texts, "rewards": rewards[row].tolist()})
            demonstrations.append({"prompt": prompt, "completion": texts[int(rewards[row].argmax())]})
    students = {
        "Alpaca": alpaca,
        "Alpaca, longer": best([student(imitated, "sft", from_alpaca, lr) for lr in lrs]),
        "imitating the best": best([student(demonstrations, "sft", from_alpaca, lr) for lr in lrs]),
    } | {
        f"Wombat, weight {weight:g}": best(
            [student(rankings, "rrhf", from_alpaca, lr, sft_weight=weight) for lr in lrs]
        )
        for weight in sft_weights
    }
    return found | {name: judged(policy) for name, policy in students.items()}
