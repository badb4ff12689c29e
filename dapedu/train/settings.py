"""How to train, what it will cost, and the card that goes with the model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dapedu.data import Record, apply_chat_template
from dapedu.models import ScalarHead
from dapedu.packing import Packed
from dapedu.train.examples import Examples, batches_of_epoch, parts_of_batch
from dapedu.train.methods import REWARD, Method, method_of
from dapedu.train.processes import this_process, trained
from dapedu.train.scorer import Scorer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOADED_MODEL = "`dapedu.models.load_model`, or with transformers' AutoModelForCausalLM and AutoTokenizer"
_LOADED_HEAD = "`dapedu.models.load_head`, and read rewards with `dapedu.models.head_rewards`"
_TIMED, _PATIENCE = 3, 2.0  # steps that `plan` times, fewer if they take so many seconds


@dataclass(frozen=True)
class Settings:
    """How to train. The method's own strengths are not among them."""

    steps: int = 400  # optimiser steps
    batch_size: int = 32  # examples a step
    parts: int = 1  # a batch is read in so many parts, one after the other: saves memory, changes nothing else
    max_length: int | None = None  # tokens of the longest sequence; prompts that are too long lose their beginning
    lr: float = 3e-4  # AdamW's, after the warm-up; falls linearly to a tenth
    warmup: int = 20  # steps in which the learning rate rises from 0
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 0  # of the data's order
    log_every: int = 10  # steps
    evaluate_every: int = 100  # steps between evaluations on held-out records, if there are any
    kl_samples: int = 256  # completions drawn at an evaluation to estimate KL(π‖π_ref); 0 for none
    checkpoint_every: int = 100  # steps

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "parts", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Settings: {name} is {getattr(self, name)}, expected at least 1")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"Settings: max_length is {self.max_length}, expected at least 2, or None")
        for name in ("warmup", "kl_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"Settings: {name} is {getattr(self, name)}, expected at least 0")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"Settings: {name} is {getattr(self, name)}, expected a positive number")


SFT_SETTINGS = Settings(steps=800, batch_size=64, lr=4e-3, warmup=50)  # for a tiny model from scratch
# For a tiny model and 4,096 pairs, which it reads twice: by the fourth time it knows them by heart.
REWARD_SETTINGS = Settings(steps=256, lr=3e-3, kl_samples=0)


class Plan(NamedTuple):
    """What `plan` foresees."""

    examples: int
    steps: int
    epochs: float
    tokens_per_step: float  # prompts counted with each completion
    read: float  # the share of them that the model reads: common beginnings once, padding where it cannot be avoided
    parameters: int
    trained: int  # of the parameters
    memory: int  # bytes of weights, and of gradients and AdamW's two moments where trained; activations come on top
    seconds: float  # of all steps, from a few timed ones; evaluations come on top
    timed: int  # how many

    def __str__(self) -> str:
        return "\n".join(
            (
                f"examples     {self.examples:,}",
                f"steps        {self.steps:,}, {self.epochs:,.2f} epochs",
                f"tokens       {self.tokens_per_step:,.0f} a step; the model reads {self.read:.0%} of that, "
                f"{'what texts begin with in common once' if self.read <= 1 else 'in padded rectangles'}",
                f"parameters   {self.parameters:,}, of which {self.trained:,} are trained",
                f"memory       {self.memory / 2**20:,.0f} MiB for weights, gradients and AdamW; activations besides",
                f"time         about {self.seconds:,.0f} s on {_device_name()}, "
                f"from {self.timed} timed step{'s' if self.timed > 1 else ''}",
            )
        )


def plan(
    model: PreTrainedModel | PeftModel | ScalarHead,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    *,
    method: str,
    settings: Settings,
) -> Plan:
    """What a run would take: counts tokens and times a few steps on a copy of the model.

    Args:
        model: left as it is.
        tokenizer: the model's.
        records: as the method needs them.
        method: a key of `METHODS`, or "reward" for a `ScalarHead`.
        settings: of the run.

    Returns:
        `Plan`.

    Raises:
        ValueError: a record lacks a field or is too long for the model.
    """
    records = apply_chat_template(records, tokenizer)
    examples = Examples.of(records, method_of(method, records), tokenizer, max_length=settings.max_length)
    examples.require_readable(model, records)
    batches = batches_of_epoch(len(examples), batch_size=settings.batch_size, seed=settings.seed, epoch=0)
    trial = copy.deepcopy(model).float()
    trial.to(_device())  # type: ignore[arg-type]  # transformers' decorator hides the method
    scorer = Scorer(trial)
    optimizer = torch.optim.AdamW(trained(trial), lr=settings.lr, fused=True)
    start, tokens, read = 0.0, 0, 0
    for number, rows in enumerate([batches[0], *batches[:_TIMED]]):  # the first one once more: it warms up
        if number == 1:
            start = time.perf_counter()
        optimizer.zero_grad()
        for part in parts_of_batch(rows, examples.widths, parts=settings.parts):
            batch = scorer.layout(examples.select(part), device=trial.device)
            loss = scorer(batch).sum()
            loss.backward()
            loss.item()  # waits for a GPU
            read += _tokens_read(batch)
        optimizer.step()
        tokens += sum(examples.tokens[row] for row in rows)
        if number and time.perf_counter() - start > _PATIENCE:
            break
    seconds = (time.perf_counter() - start) / number * settings.steps
    parameters = sum(parameter.numel() for parameter in model.parameters())
    changed = sum(parameter.numel() for parameter in trained(model))
    return Plan(
        examples=len(examples),
        steps=settings.steps,
        epochs=settings.steps / len(batches),
        tokens_per_step=sum(examples.tokens) / len(batches),
        read=read / tokens,
        parameters=parameters,
        trained=changed,
        memory=4 * parameters + 12 * changed,
        seconds=seconds,
        timed=number,
    )


def model_card(
    name: str,
    method: Method,
    strengths: Mapping[str, float],
    settings: Settings,
    examples: Examples,
    log: Sequence[Mapping[str, float]],
    adapters: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of a trained model.

    Args:
        name: of the method.
        method: what it asks of a batch.
        strengths: its hyperparameters.
        settings: of the run.
        examples: what it was trained on.
        log: what was logged.
        adapters: rank, alpha, targets and base of LoRA adapters, if these were trained.

    Returns:
        Markdown.
    """
    last = {key: value for record in log for key, value in record.items()}
    is_reward = name == REWARD
    return "\n".join(
        (
            "---",
            *(
                ["library_name: peft", f"base_model: {adapters['base']}"]
                if adapters
                else ["library_name: transformers"]
            ),
            "tags: [reward-model]" if is_reward else "pipeline_tag: text-generation",
            "---",
            "# A reward model" if is_reward else f"# {'LoRA adapters' if adapters else 'A model'} trained by {name}",
            "",
            f"Trained with dapedu: {method.summary}.",
            "",
            *([f"- Adapters: {_listed(adapters)}"] if adapters else []),
            f"- Data: {len(examples):,} examples, checksum {examples.fingerprint()}",
            f"- Strengths: {_listed(strengths) or 'none'}",
            f"- Settings: {_listed(asdict(settings))}",
            f"- At the end: {_listed({k: v for k, v in last.items() if k not in ('step', 'tokens_s', 'lr')})}",
            "",
            f"Load it with {_LOADED_HEAD if is_reward else _LOADED_MODEL}.",
            "",
        )
    )


def _tokens_read(batch: Packed | tuple[torch.Tensor, torch.Tensor]) -> int:
    return batch.input_ids.numel() if isinstance(batch, Packed) else batch[0].numel()


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def _device() -> torch.device:
    return this_process().device


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_device().type}"
