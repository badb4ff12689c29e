"""The training loop: score a batch, ask the method for its loss, take a step; log, evaluate, save.

`_train` is the whole of it and meant to be read. Everything around it prepares what it loops over.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dapedu.data import Record, apply_chat_template
from dapedu.models import ScalarHead, require_saveable, save_model
from dapedu.packing import unwrapped
from dapedu.train.checkpoints import Run
from dapedu.train.examples import Examples, batches_of_epoch, parts_of_batch
from dapedu.train.methods import METHODS, Method, Scores, method_of
from dapedu.train.monitor import (
    COLUMNS,
    SHOWN,
    Clock,
    Log,
    estimate_kl,
    evaluate_held_out,
    kl_prompts,
    measure,
    reference_of,
    score_all,
    scores_of,
)
from dapedu.train.processes import Processes, this_process, trained
from dapedu.train.scorer import Scorer
from dapedu.train.settings import SFT_SETTINGS, Settings, model_card

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from tqdm import tqdm
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class DivergedError(ArithmeticError):
    """The loss or its gradient is not a number any more; the message says at which step and what to try."""


def train_sft(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Record],
    *,
    settings: Settings | None = None,
    held_out: Sequence[Record] = (),
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Supervised fine-tuning: imitate the demonstrations' completions.

    Args:
        model: trained in place.
        tokenizer: the model's.
        demonstrations: records of `prompt` and `completion`.
        settings: by default `SFT_SETTINGS`, for a tiny model from scratch.
        held_out: demonstrations whose loss is logged, never trained on.
        output: folder for log, checkpoints and model; None keeps nothing on disk.
        resume: go on from output's last checkpoint, if there is one.
        progress: show a bar.

    Returns:
        What was logged, a dict every `log_every` steps.

    Raises:
        ValueError: as `train_preference`.
        RunError, DivergedError, KeyboardInterrupt: as `train_preference`.
    """
    return train_preference(
        model,
        tokenizer,
        demonstrations,
        method="sft",
        settings=settings or SFT_SETTINGS,
        held_out=held_out,
        output=output,
        resume=resume,
        progress=progress,
    )


def train_preference(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    *,
    method: str,
    strengths: Mapping[str, float] | None = None,
    settings: Settings | None = None,
    held_out: Sequence[Record] = (),
    metrics: Mapping[str, Callable[[Any], float]] | None = None,
    reference: PreTrainedModel | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a model by any method of the book; the reference is the model as it comes in, unless another is given.

    Runs on CUDA, Apple's GPU or the CPU, whichever there is; in bfloat16 on CUDA, with weights in float32. The model
    comes back where it was. Started by `torchrun` or `accelerate launch`, several processes share each batch and take
    the steps that one would.

    Args:
        model: the SFT model, trained in place; its adapters only, if `dapedu.models.add_lora` gave it some.
        tokenizer: the model's.
        records: demonstrations, preferences or rankings, as the method needs; conversations are rendered by the
            tokenizer's chat template.
        method: a key of `METHODS`.
        strengths: the method's hyperparameters where they differ from its defaults, `{"beta": 0.5}`.
        settings: of the optimiser and of what is logged, evaluated and saved when.
        held_out: records of the same kind that are evaluated, never trained on.
        metrics: what else to log at each evaluation: names, and functions of the model.
        reference: another model with the same tokens, which stays as it is.
        output: folder for log, checkpoints and model; None keeps nothing on disk.
        resume: go on from output's last checkpoint, if there is one; the run ends as if never interrupted.
        progress: show a bar.

    Returns:
        What was logged, a dict every `log_every` steps: `loss`, and for pairs the mean log-ratios `chosen` and
        `rejected` (log-probabilities where the method has no reference), their difference `margin` and its sign's
        share `accuracy`; for rankings alone `accuracy`, the share of pairs of different rewards whose log-probabilities
        are in the same order; `grad_norm`, `lr`, `tokens_s`; the same with `held_out_` before, and `kl` in nats, where
        it was evaluated. Numbers have six digits. A resumed run also returns what it logged before.

    Raises:
        ValueError: no such method, strength or field, a strength out of range, or a record that the model cannot read;
            the message says what there is. Nothing was started.
        RunError: output holds another run, or its last checkpoint cannot be read.
        DivergedError: the loss is not finite any more.
        KeyboardInterrupt: Ctrl-C, after the step was finished and a checkpoint saved.
    """
    if method not in METHODS:
        there_are = f"there are {', '.join(METHODS)}, and train_reward for reward models"
        raise ValueError(f"train_preference: no method {method!r}; {there_are}")
    if isinstance(model, ScalarHead):
        raise TypeError("train_preference: model is a ScalarHead, expected a language model; train_reward trains heads")
    strengths = {**METHODS[method].strengths, **(strengths or {})}
    if unknown := set(strengths) - set(METHODS[method].strengths):
        has = ", ".join(METHODS[method].strengths) or "none"
        raise ValueError(f"train_preference: {method} has no strength {', '.join(sorted(unknown))}; it has {has}")
    return train_by(
        method,
        model,
        tokenizer,
        records,
        strengths=strengths,
        settings=settings or Settings(),
        held_out=held_out,
        metrics=metrics or {},
        reference=reference,
        output=output,
        resume=resume,
        progress=progress,
    )


def train_by(
    name: str,
    model: PreTrainedModel | PeftModel | ScalarHead,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    *,
    strengths: Mapping[str, float],
    settings: Settings,
    held_out: Sequence[Record],
    metrics: Mapping[str, Callable[[Any], float]],
    reference: PreTrainedModel | None = None,
    output: str | Path | None,
    resume: bool,
    progress: bool,
) -> list[dict[str, float]]:
    """What `train_preference` and `train_reward` do: refuse what can be refused, run the loop, save the model.

    Args:
        name: of the method, as `method_of` takes it.
        model, tokenizer, records, settings, held_out, metrics, reference, output, resume, progress: as
            `train_preference`.
        strengths: all of the method's.

    Returns, Raises: as `train_preference`.
    """
    from tqdm.auto import tqdm

    method = method_of(name, records)
    records, held_out = apply_chat_template(records, tokenizer), apply_chat_template(held_out, tokenizer)
    training = Examples.of(records, method, tokenizer, max_length=settings.max_length)
    watched = Examples.of(held_out, method, tokenizer, max_length=settings.max_length) if held_out else None
    training.require_readable(model, records)
    if watched:
        watched.require_readable(model, held_out)
    try_loss(method, strengths, training.k)
    if output is not None:
        require_saveable(model, Path(output) / "model")
    process, adapters, run = this_process(), _adapters_of(model), None
    if output is not None:
        asked = {
            "method": name,
            "strengths": strengths,
            "settings": asdict(settings),
            "data": training.fingerprint(),
            "held_out": watched.fingerprint() if watched else None,
            "metrics": list(metrics),
            "start": fingerprint(model),
            # Not where the base is: the folders may have moved, and `start` knows its weights.
            "adapters": {key: value for key, value in (adapters or {}).items() if key != "base"} or None,
        }
        if reference is not None:
            asked["reference"] = fingerprint(reference)
        with process.main_process_first():  # the others find its folder, and that they were asked the same
            run = Run(output, asked=asked, resume=resume or not process.is_main_process)
    prompts: list[str] = []
    if name != "sft" and not isinstance(model, ScalarHead):  # which have no reference
        prompts = kl_prompts(held_out, model, tokenizer, settings.kl_samples)
    home = model.device
    try:
        log = _train(
            # Half-precision weights are too coarse for small steps. No dropout: a log-ratio compares the policy with
            # the reference, not with a part of it.
            model.float().eval(),
            training,
            method=method,
            strengths=strengths,
            settings=settings,
            held_out=watched,
            prompts=prompts,
            metrics=metrics,
            reference=reference,
            tokenizer=tokenizer,
            run=run,
            bar=tqdm(total=settings.steps, disable=not (progress and process.is_main_process), unit="step", desc=name),
        )
    finally:
        model.to(home)  # type: ignore[arg-type]  # transformers' decorator hides the method
    if run is not None and process.is_main_process:
        card = model_card(name, method, strengths, settings, training, log, adapters)
        save_model(model, tokenizer, run.model, card=card)
    process.wait_for_everyone()
    return log


def _train(
    model: PreTrainedModel | PeftModel | ScalarHead,
    training: Examples,
    *,
    method: Method,
    strengths: Mapping[str, float],
    settings: Settings,
    held_out: Examples | None,
    prompts: Sequence[str],
    metrics: Mapping[str, Callable[[Any], float]],
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    run: Run | None,
    bar: tqdm,
) -> list[dict[str, float]]:
    """The loop; `scorer` is the model as accelerate prepared it. Of several processes each reads its share."""
    processes = Processes()
    device, accelerator = processes.device, processes.accelerator
    bare = Scorer(model.to(device))
    optimizer = torch.optim.AdamW(trained(model), lr=settings.lr, weight_decay=0.0, fused=True)
    scorer, optimizer = accelerator.prepare(bare, optimizer)
    # Computed once, before the first step: from here on nobody needs the reference itself, except to estimate a KL.
    at_once = math.ceil(settings.batch_size / settings.parts)
    score = partial(score_all, bare, bare.layout, processes, at_once)
    frozen = bare if reference is None else Scorer(copy.deepcopy(reference).to(device).float().eval())
    score_frozen = partial(score_all, frozen, frozen.layout, processes, at_once)
    reference_logps = score_frozen(training) if method.needs_reference else None
    held_out_reference = score_frozen(held_out) if held_out and method.needs_reference else None
    kl = None
    if prompts and processes.leads and not isinstance(model, ScalarHead):
        of_reference = reference_of(
            model if reference is None else cast("PreTrainedModel", frozen.model), at_once=2 * at_once
        )
        kl = partial(estimate_kl, model, of_reference, tokenizer, prompts, settings.seed, at_once=2 * at_once)

    start = run.restore(model, optimizer) if run else 0
    batches = _batches(training, settings, skip=start)
    with accelerator.main_process_first():
        log = run.trim_log(start) if run else []
    file = Log(run if processes.leads else None, start, [*COLUMNS, *metrics])
    with bar, file, deferred_interrupts() as interrupted:
        bar.update(start)
        clock = Clock()
        for step in range(start + 1, settings.steps + 1):
            rows = next(batches)
            mine, share = processes.share(rows)
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            losses, scores = [], []
            parts = parts_of_batch(mine, training.widths, parts=settings.parts)
            for part in parts:
                with processes.exchange(scorer, now=part is parts[-1]):
                    logps = scorer(bare.layout(training.select(part), device=device)).view(len(part), training.k)
                    scores.append(scores_of(training, part, logps, reference_logps))
                    losses.append(method.loss(scores[-1], **strengths))
                    accelerator.backward(losses[-1].sum() / len(mine) * share * processes.number)
            clock.tokens += sum(training.tokens[row] for row in rows)
            grad_norm = accelerator.clip_grad_norm_(trained(model), settings.clip)
            loss = torch.cat(losses).detach().mean()
            # In every process the same, or one would go on alone.
            loss, stop = processes.add(torch.stack([loss * share, loss.new_tensor(len(interrupted))]))
            if not (loss.isfinite() and grad_norm.isfinite()):
                raise DivergedError(_advice(step, float(loss), float(grad_norm), settings, run))
            optimizer.step()
            bar.update()

            last = step == settings.steps
            evaluate = (held_out or metrics) and (step % settings.evaluate_every == 0 or last)
            if evaluate or last or step % settings.log_every == 0:
                record = processes.together(measure(torch.cat(losses), _joined(scores)), share)
                record |= {"grad_norm": float(grad_norm), "lr": learning_rate(settings, step)}
                record |= {"tokens_s": clock.rate()}
                if evaluate and held_out:
                    record |= evaluate_held_out(score(held_out), held_out, held_out_reference, method, strengths)
                if evaluate and kl is not None:
                    record["kl"] = kl()
                if evaluate and processes.leads:
                    record |= {name: metric(model) for name, metric in metrics.items()}
                if evaluate:
                    clock = Clock()  # evaluations do not count
                log.append(file.write({"step": step, **record}))
                bar.set_postfix({key: f"{value:.3g}" for key, value in record.items() if key in SHOWN})
            if run and processes.leads and (last or stop or step % settings.checkpoint_every == 0):
                run.save(step, model, optimizer)
            if stop:
                kept = f"saved in {run.folder}; --resume goes on" if run else "nothing is saved: the run had no folder"
                raise KeyboardInterrupt(f"stopped after step {step} of {settings.steps}; {kept}")
    return log


def _joined(parts: Sequence[Scores]) -> Scores:
    """The scores of a batch that was cut into parts."""
    columns = zip(*parts, strict=True)
    return Scores._make(torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns)


def _batches(examples: Examples, settings: Settings, *, skip: int) -> Iterator[list[int]]:
    """Epoch after epoch; `skip` batches are left out without being computed twice."""
    each = math.ceil(len(examples) / settings.batch_size)
    for epoch in itertools.count(skip // each):
        batches = batches_of_epoch(len(examples), batch_size=settings.batch_size, seed=settings.seed, epoch=epoch)
        yield from batches[skip % each if epoch == skip // each else 0 :]


def learning_rate(settings: Settings, step: int) -> float:
    """A rise from 0, then a straight line to a tenth; steps are counted from 1."""
    rise = min(1.0, step / settings.warmup) if settings.warmup else 1.0
    return settings.lr * rise * (1 - 0.9 * (step - 1) / settings.steps)


def try_loss(method: Method, strengths: Mapping[str, float], k: int) -> None:
    """The losses know which strengths make sense: ask before a run's folder is made, not at its first step."""
    zeros = torch.zeros(1, k)
    method.loss(Scores(zeros, torch.ones(1, k), zeros, zeros, mean_length=1.0), **strengths)


def _adapters_of(model: nn.Module) -> dict[str, Any] | None:
    """What a run's LoRA adapters are, beside their weights."""
    if not hasattr(model, "active_peft_config"):
        return None
    config = cast("LoraConfig", cast("PeftModel", model).active_peft_config)
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": " ".join(sorted(config.target_modules or [])),
        "base": unwrapped(cast("PeftModel", model)).name_or_path,
    }


def _advice(step: int, loss: float, grad_norm: float, settings: Settings, run: Run | None) -> str:
    has_checkpoint = run is not None and any(run.folder.glob("checkpoint-*.safetensors"))
    kept = f" The last checkpoint in {run.folder} is from before." if run and has_checkpoint else ""
    return (
        f"step {step}: the loss is {loss} and the gradient's norm {grad_norm}; training stopped before they spoilt "
        f"the weights.{kept} Try a smaller learning rate (now {settings.lr:g}), a longer warm-up "
        f"(now {settings.warmup} steps) or weaker strengths; squared losses on long texts have steep gradients."
    )


def fingerprint(model: nn.Module) -> str:
    """A checksum of the weights: two runs with the same one started from the same model."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C and a scheduler's SIGTERM, so that a step is finished and saved; the second one stops at once.

    Yields:
        The signals received, filled as they come.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield received
        return

    def receive(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
