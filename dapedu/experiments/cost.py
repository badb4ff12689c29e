"""What RLHF and the direct methods cost: models in memory, and seconds until the reviews are good."""

from __future__ import annotations

import copy
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dapedu import reviews
from dapedu.experiments.laboratories import COMPLETIONS, gold_reward, learned_reward, prepare, reward_model
from dapedu.experiments.reviews import SEEDS
from dapedu.experiments.rlhf import tuned_settings
from dapedu.experiments.units import run_units, scratch
from dapedu.models import ScalarHead, head_rewards, load_model
from dapedu.ppo import PPOSettings, RLOOSettings, train_ppo, train_rloo
from dapedu.sampling import sample
from dapedu.train import Settings, train_preference

METHODS = ("DPO", "PPO", "RLOO")
# Bytes a parameter: a frozen model has its weights; a trained one also a gradient and AdamW's two moments.
_FROZEN, _TRAINED = 4, 16


def cost_memory(
    *, widths: Sequence[int] = (256, 512, 768), layers: int = 12, completions: int = 16, tokens: int = 32
) -> dict[str, Any]:
    """Memory of two updates of GPT-2s from 10 to 85 million parameters: by counting, and the peak of a process."""
    results: dict[str, Any] = {}
    for width in widths:
        for method in METHODS:
            case = {"method": method, "width": width, "layers": layers, "completions": completions, "tokens": tokens}
            results.setdefault(str(width), {})[method] = _in_a_process(memory_unit, case)
    return results


def cost_seconds(*, seeds: Sequence[int] = SEEDS, beta: float = 0.5, goal: float = 0.3) -> dict[str, Any]:
    """Seconds a completion, and until the gold reward on validation prompts reaches .3, data and models included."""
    prepare(seeds)
    results: dict[str, Any] = {}
    settings = tuned_settings()
    for method in ("DPO", "PPO, gold reward", "PPO, learned reward", "RLOO, gold reward"):
        case = {"method": method, "beta": beta, "goal": goal, "settings": settings[method]}
        rows = run_units(seconds_unit, [{"seed": seed, **case} for seed in seeds])
        results[method] = {name: [row[name] for row in rows] for name in rows[0]}
    return results


def memory_unit(*, method: str, width: int, layers: int, completions: int, tokens: int) -> dict[str, float]:
    """Two updates in this process, which should be a fresh one.

    Args:
        method: one of `METHODS`.
        width, layers: of the GPT-2.
        completions: a step; half as many pairs.
        tokens: of a completion.

    Returns:
        Parameters of the policy, in millions; GiB counted for the models that the method keeps; GiB that the process
        needed beyond what it had before there was a model.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = reviews.make_tokenizer()
    before = _peak()
    config = GPT2Config(
        n_embd=width, n_layer=layers, n_head=width // 64, vocab_size=len(tokenizer), n_positions=96,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    prompts = reviews.draw_prompts(completions, split="train")
    if method == "DPO":
        texts = reviews.corpus(completions)
        records = [
            {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]}
            for a, b in zip(texts[::2], texts[1::2], strict=True)
        ]
        plan = Settings(steps=2, batch_size=len(records), kl_samples=0)
        train_preference(model, tokenizer, records, method="dpo", settings=plan, progress=False)
    else:
        head = ScalarHead(copy.deepcopy(model)).requires_grad_(False)
        common: dict[str, Any] = {"steps": 2, "batch_size": completions, "max_new_tokens": tokens}

        def reward(samples: Any) -> torch.Tensor:
            return head_rewards(head, samples.sequences)

        if method == "PPO":
            ppo = PPOSettings(**common, minibatches=1)
            train_ppo(model, tokenizer, prompts, reward, beta=0.5, settings=ppo, progress=False)
        else:
            rloo = RLOOSettings(**common)
            train_rloo(model, tokenizer, prompts, reward, beta=0.5, settings=rloo, progress=False)
    counted = {"DPO": _TRAINED, "RLOO": _TRAINED + 2 * _FROZEN, "PPO": 2 * _TRAINED + 2 * _FROZEN}[method]
    return {
        "parameters": round(parameters / 1e6, 2),
        "counted": round(counted * parameters / 2**30, 3),
        "measured": round((_peak() - before) / 2**30, 3),
    }


def seconds_unit(
    *, seed: int, method: str, beta: float, goal: float, settings: Mapping[str, Any]
) -> dict[str, float | None]:
    """One training run with the clock: everything counts from the SFT model on, but what looks at the policy.

    Args:
        seed: of the laboratory.
        method: of `dapedu.experiments.rlhf.METHODS`.
        beta: KL weight.
        goal: gold reward on 512 validation prompts.
        settings: of the method.

    Returns:
        `before`, seconds until the first update (DPO's pairs, the reward model); `update`, of each update of the policy
        from a batch; `completion`, of training for each completion; `until goal`, or None if it was not reached.
    """
    start = time.perf_counter()
    policy, tokenizer = load_model(scratch() / f"sft-{seed}")
    paused = [0.0]
    reached: list[float | None] = [None]

    def look(model: Any) -> float:
        begun = time.perf_counter()
        prompts = reviews.draw_prompts(512, split="validation", seed=seed)
        gold = reviews.gold_rewards(sample(model, tokenizer, prompts, seed=seed)).mean().item()
        if gold >= goal and reached[0] is None:
            reached[0] = begun - start - paused[0]
        paused[0] += time.perf_counter() - begun
        return gold

    options: dict[str, Any] = {"metrics": {"gold": look}, "progress": False}
    if method == "DPO":
        records = reviews.preferences(policy, tokenizer, COMPLETIONS // 2, seed=seed)
        before = time.perf_counter() - start
        plan = Settings(**settings, seed=seed, kl_samples=0, evaluate_every=max(1, settings["steps"] // 32))
        train_preference(policy, tokenizer, records, method="dpo", strengths={"beta": beta}, settings=plan, **options)
        steps, completions = settings["steps"], 2 * plan.batch_size * settings["steps"]
    else:
        if "learned" in method:
            reward_model(seed=seed)
        reward = learned_reward(seed) if "learned" in method else gold_reward
        before = time.perf_counter() - start
        steps = COMPLETIONS // settings["batch_size"]
        more = {"steps": steps, "seed": seed, "evaluate_every": max(1, steps // 32)}
        prompts = reviews.draw_prompts(COMPLETIONS, split="train", seed=seed)
        if method.startswith("PPO"):
            ppo = PPOSettings(**settings, **more)
            train_ppo(policy, tokenizer, prompts, reward, beta=beta, settings=ppo, **options)
        else:
            rloo = RLOOSettings(**settings, **more)
            train_rloo(policy, tokenizer, prompts, reward, beta=beta, settings=rloo, **options)
        completions = COMPLETIONS
    trained = time.perf_counter() - start - paused[0] - before
    return {
        "before": round(before, 2),
        "update": round(trained / steps, 4),
        "completion": round(trained / completions, 5),
        "trained": round(trained, 2),
        "until goal": None if reached[0] is None else round(reached[0], 2),
    }


def _peak() -> int:
    """Bytes of memory that this process has needed at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _in_a_process(unit: Callable[..., dict[str, float]], case: Mapping[str, Any]) -> dict[str, float]:
    """A peak is the process's: each unit needs one of its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(unit, kwds=dict(case))
