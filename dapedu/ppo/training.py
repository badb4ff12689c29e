"""PPO and RLOO: sample, judge, estimate advantages, take a few clipped steps; log, save, and again.

`_train` is the loop; `dapedu.ppo.step.learn` is what a step does with its completions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dapedu.data import encode_prompts
from dapedu.logps import layout_of
from dapedu.models import ScalarHead, require_saveable, save_model
from dapedu.packing import unwrapped
from dapedu.ppo.objective import adapted_kl_coef
from dapedu.ppo.rollouts import Reward, Rollouts, checked_rewards, collect
from dapedu.ppo.settings import PPOSettings, RLOOSettings
from dapedu.ppo.step import Trained, advantages_of, learn, token_rewards_of
from dapedu.sampling import sample
from dapedu.train.checkpoints import Run
from dapedu.train.loop import deferred_interrupts, fingerprint
from dapedu.train.monitor import Clock, Log
from dapedu.train.processes import this_process

if TYPE_CHECKING:
    from peft import PeftModel
    from tqdm import tqdm
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LEARNT = ("policy_loss", "value_loss", "kl_loss", "clipped", "policy_grad_norm", "value_grad_norm")
COLUMNS = ("step", "reward", "kl", "kl_coef", "entropy", "length", "finished", "explained", *_LEARNT, "lr", "tokens_s")
_SHOWN = ("reward", "kl", "length")  # beside the progress bar
_TRIED = 8  # completions that the reward is tried on before a run


def train_ppo(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Reward,
    *,
    beta: float,
    value_model: ScalarHead | None = None,
    settings: PPOSettings | None = None,
    metrics: Mapping[str, Callable[[Any], float]] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Maximise E[r] − β KL(π‖π_ref) by proximal policy optimisation; the model as it comes in is the reference.

    Four models take part: the policy, the reference, the reward, and a value model that learns beside the policy.
    Runs on CUDA, Apple's GPU or the CPU, whichever there is; the models come back where they were.

    Args:
        model: the SFT model, trained in place.
        tokenizer: the model's; without an end-of-sequence token, every completion has max_new_tokens.
        prompts: what the policy completes, drawn anew in each step.
        reward: from the samples, `Samples`, to one number each: a rule, or a trained reward model,
            `lambda samples: head_rewards(head, samples.sequences)`.
        beta: KL weight β, ≥ 0; where it starts, if settings has a target_kl.
        value_model: trained in place; by default a copy of the model with a head that starts at zero.
        settings: by default `PPOSettings()`, for a tiny model.
        metrics: what else to log every `evaluate_every` steps: names, and functions of the model.
        output: folder for log, checkpoints and model; None keeps nothing on disk.
        resume: go on from output's last checkpoint, if there is one; the run ends as if never interrupted.
        progress: show a bar.

    Returns:
        What was logged, a dict every `log_every` steps, numbers of six digits. Of the completions, before they were
        learnt from: mean `reward` without the KL term, `kl` (log π − log π_ref, nats a completion), `entropy` (−log π),
        `length` in tokens, share `finished`. `kl_coef` is β; `explained` the share of the returns' variance that the
        value model foresaw. Means over the steps taken: `policy_loss`, `value_loss`, `kl_loss`, the share of tokens
        whose probability had moved beyond the clip range, `clipped`, and the gradients' norms. `tokens_s` counts
        tokens of prompts and completions. A resumed run also returns what it logged before.

    Raises:
        ValueError: a number is out of range, there are no prompts, one is too long, the reward does not give one finite
            number a sample, or value_model shares weights with model or is of another architecture; or several
            processes were started. Nothing was.
        TypeError: settings are not PPO's.
        RunError: output holds another run, or its last checkpoint cannot be read.
        DivergedError: a loss, a gradient or, after the start, a reward is not finite any more.
        KeyboardInterrupt: Ctrl-C, after the step was finished and a checkpoint saved.

    Source: arXiv:1707.06347; with language models arXiv:1909.08593, arXiv:2203.02155. Book: eq-ppo-clip.
    """
    settings = PPOSettings() if settings is None else settings
    if not isinstance(settings, PPOSettings):
        raise TypeError(f"train_ppo: settings is a {type(settings).__name__}, expected PPOSettings")
    return _start(
        "ppo",
        model,
        tokenizer,
        prompts,
        reward,
        beta=beta,
        value_model=ScalarHead(copy.deepcopy(model)) if value_model is None else value_model,
        settings=settings,
        metrics=metrics or {},
        output=output,
        resume=resume,
        progress=progress,
    )


def train_rloo(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Reward,
    *,
    beta: float,
    settings: RLOOSettings | None = None,
    metrics: Mapping[str, Callable[[Any], float]] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Maximise E[r] − β KL(π‖π_ref) by REINFORCE with a leave-one-out baseline: PPO without a value model.

    Each prompt gets several completions, and each of them the mean reward of the others as its baseline.

    Args:
        model, tokenizer, prompts, reward, beta, metrics, output, resume, progress: as `train_ppo`.
        settings: by default `RLOOSettings()`, for a tiny model.

    Returns:
        As `train_ppo`, without what is about a value model.

    Raises:
        ValueError, RunError, DivergedError, KeyboardInterrupt: as `train_ppo`; settings has fewer than two samples a
            prompt.

    Source: arXiv:2402.14740. Book: eq-rloo.
    """
    settings = settings or RLOOSettings()
    if settings.samples_per_prompt < 2:
        raise ValueError("train_rloo: samples_per_prompt is 1, expected at least 2: the others are the baseline")
    return _start(
        "rloo",
        model,
        tokenizer,
        prompts,
        reward,
        beta=beta,
        value_model=None,
        settings=settings,
        metrics=metrics or {},
        output=output,
        resume=resume,
        progress=progress,
    )


def _start(
    method: str,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Reward,
    *,
    beta: float,
    value_model: ScalarHead | None,
    settings: RLOOSettings,
    metrics: Mapping[str, Callable[[Any], float]],
    output: str | Path | None,
    resume: bool,
    progress: bool,
) -> list[dict[str, float]]:
    """Everything that can be refused is, before the first step; then `_train`, and the model is saved."""
    from tqdm.auto import tqdm

    process = this_process()
    if process.num_processes > 1:
        raise ValueError(f"train_{method}: {process.num_processes} processes were started, expected one")
    if not 0 <= beta < float("inf"):
        raise ValueError(f"train_{method}: beta is {beta}, expected a finite number ≥ 0")
    if beta == 0 and settings.target_kl is not None:
        raise ValueError(f"train_{method}: beta is 0, which no target_kl changes; expected a positive number")
    if not prompts:
        raise ValueError(f"train_{method}: there are no prompts")
    if value_model is not None:
        _check_value_model(model, value_model)
    if output is not None:
        require_saveable(model, Path(output) / "model")
    homes = {part: part.device for part in (model, value_model) if part is not None}
    try:
        # Half-precision weights are too coarse for small steps. No dropout: ratios compare the policy with what it was,
        # not with a part of it.
        trained = Trained(model, value_model, beta).float().eval().to(process.device)
        reference = copy.deepcopy(model).requires_grad_(False)
        tried = _try_reward(model, tokenizer, prompts, reward, settings)
        run = None
        if output is not None:
            asked = {
                "method": method,
                "strengths": {"beta": beta},
                "settings": asdict(settings),
                "data": sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16],
                "reward": [round(value, 3) for value in tried.tolist()],
                "metrics": list(metrics),
                "start": fingerprint(model),
                "value_model": fingerprint(value_model) if value_model is not None else None,
            }
            run = Run(output, asked=asked, resume=resume)
        bar = tqdm(total=settings.steps, disable=not progress, unit="step", desc=method)
        log = _train(
            trained, reference, tokenizer, prompts, reward, settings=settings, metrics=metrics, run=run, bar=bar
        )
    finally:
        for part, home in homes.items():
            part.to(home)  # type: ignore[arg-type]  # transformers' decorator hides the method
    if run is not None:
        save_model(model, tokenizer, run.model, card=_card(method, beta, settings, len(prompts), log))
    return log


def _check_value_model(model: PreTrainedModel | PeftModel, value_model: ScalarHead) -> None:
    ours, given = unwrapped(model).base_model, value_model.transformer
    if type(ours) is not type(given):  # it reads in the way that was found for the policy
        raise ValueError(
            f"train_ppo: value_model is a {type(given).__name__}, expected a {type(ours).__name__} as the policy's"
        )
    trainable, others = ({p for p in part.parameters() if p.requires_grad} for part in (model, value_model))
    if trainable & others:
        raise ValueError("train_ppo: value_model shares weights with model; give it a copy of the transformer")


def _train(
    trained: Trained,
    reference: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Reward,
    *,
    settings: RLOOSettings,
    metrics: Mapping[str, Callable[[Any], float]],
    run: Run | None,
    bar: tqdm,
) -> list[dict[str, float]]:
    policy: Any = trained.policy
    layout = layout_of(policy)
    optimizer = torch.optim.AdamW(_groups(trained, settings), weight_decay=0.0, fused=True)
    start = run.restore(trained, optimizer) if run else 0
    log = run.trim_log(start) if run else []
    file = Log(run, start, [*COLUMNS, *metrics])
    with bar, file, deferred_interrupts() as interrupted:
        bar.update(start)
        clock = Clock()
        for step in range(start + 1, settings.steps + 1):
            rollouts = collect(
                policy,
                reference,
                trained.value_model,
                tokenizer,
                prompts,
                reward,
                layout=layout,
                settings=settings,
                step=step,
            )
            clock.tokens += sum(map(len, rollouts.samples.sequences.input_ids))
            share = 1 - (1 - settings.final_lr) * (step - 1) / max(1, settings.steps - 1)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
            token_rewards = token_rewards_of(rollouts, trained.kl_coef, settings)
            advantages = advantages_of(rollouts, token_rewards, settings)
            learnt = learn(trained, optimizer, rollouts, advantages, layout=layout, settings=settings, step=step)
            record = {"step": step, "kl_coef": trained.kl_coef.item(), "lr": settings.lr * share}
            record |= _measured(rollouts, token_rewards) | learnt
            if settings.target_kl is not None:
                trained.kl_coef.copy_(
                    adapted_kl_coef(trained.kl_coef, rollouts.kl.mean(), target_kl=settings.target_kl)
                )
            bar.update()

            last = step == settings.steps
            evaluate = metrics and (step % settings.evaluate_every == 0 or last)
            if evaluate or last or step % settings.log_every == 0:
                record["tokens_s"] = clock.rate()
                if evaluate:
                    record |= {name: metric(policy) for name, metric in metrics.items()}
                    clock = Clock()  # evaluations do not count
                log.append(file.write(record))
                bar.set_postfix({name: f"{record[name]:.3g}" for name in _SHOWN})
            if run and (last or interrupted or step % settings.checkpoint_every == 0):
                run.save(step, trained, optimizer)
            if interrupted:
                kept = f"saved in {run.folder}; --resume goes on" if run else "nothing is saved: the run had no folder"
                raise KeyboardInterrupt(f"stopped after step {step} of {settings.steps}; {kept}")
    return log


def _groups(trained: Trained, settings: RLOOSettings) -> list[dict[str, Any]]:
    """The parameters of policy and value model, each with its learning rate."""
    rates = [(trained.policy, settings.lr)]
    if trained.value_model is not None and isinstance(settings, PPOSettings):
        rates.append((trained.value_model, settings.value_lr))
    return [
        {"params": [p for p in module.parameters() if p.requires_grad], "lr": lr, "initial_lr": lr}
        for module, lr in rates
    ]


def _measured(rollouts: Rollouts, token_rewards: Tensor) -> dict[str, float]:
    """What is logged of a step's completions."""
    samples = rollouts.samples
    found = {
        "reward": rollouts.rewards.mean().item(),
        "kl": rollouts.kl.mean().item(),
        "entropy": -rollouts.old_logps.sum(dim=1).mean().item(),
        "length": samples.sequences.lengths.double().mean().item(),
        "finished": sum(samples.finished) / len(samples),
    }
    if rollouts.old_values is not None:
        to_come = token_rewards.flip(1).cumsum(dim=1).flip(1)[rollouts.mask]
        error = to_come - rollouts.old_values[rollouts.mask]
        found["explained"] = (1 - error.var() / to_come.var().clamp(min=1e-12)).item()
    return found


def _try_reward(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Reward,
    settings: RLOOSettings,
) -> Tensor:
    """The rewards of a few completions: what is wrong with prompts or reward shows before anything is started."""
    # All prompts are read, as one that is too long for the model would stop the run when it is drawn; the longest ones
    # are completed.
    lengths = list(map(len, encode_prompts(prompts, tokenizer)))
    longest = [prompts[row] for row in sorted(range(len(prompts)), key=lengths.__getitem__)[-_TRIED:]]
    repeated = [prompt for prompt in longest for _ in range(-(-_TRIED // len(longest)))]
    samples = sample(
        model, tokenizer, repeated, max_new_tokens=settings.max_new_tokens, seed=settings.seed, every_token=True
    )
    return checked_rewards(reward, samples)


def _card(method: str, beta: float, settings: RLOOSettings, n_prompts: int, log: Sequence[Mapping[str, float]]) -> str:
    """The README.md of a trained model."""
    last = {name: value for record in log for name, value in record.items()}
    return "\n".join(
        (
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            f"# A model trained by {method}",
            "",
            "Trained with dapedu: more reward at a small KL from the model that it started from.",
            "",
            f"- Data: {n_prompts:,} prompts; β = {beta:g}",
            f"- Settings: {', '.join(f'{name} {value}' for name, value in asdict(settings).items())}",
            f"- At the end: {', '.join(f'{name} {value:.4g}' for name, value in last.items())}",
            "",
        )
    )
