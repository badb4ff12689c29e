"""What is watched while a model trains: metrics of a batch, of held-out records, the KL, and where they are written."""

from __future__ import annotations

import copy
import csv
import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dapedu.data import Record, Sequences, encode_prompts
from dapedu.models import score
from dapedu.sampling import sample
from dapedu.train.checkpoints import Run
from dapedu.train.examples import Examples
from dapedu.train.methods import Method, Scores
from dapedu.train.processes import Processes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHOWN = ("loss", "margin", "accuracy", "chosen", "rejected", "kl", "tokens_s")  # beside the progress bar
_BATCH = ("loss", "chosen", "rejected", "margin", "accuracy")
_SAMPLED = 64  # tokens of a completion that the KL is estimated on
COLUMNS = ("step", *_BATCH, "grad_norm", "lr", "tokens_s", *(f"held_out_{name}" for name in _BATCH), "kl")


def scores_of(examples: Examples, rows: Sequence[int], logps: Tensor, reference_logps: Tensor | None) -> Scores:
    """What a method's loss asks of a batch, or of a part of it.

    Args:
        examples: all of them.
        rows: the batch's.
        logps: of their completions under the policy, nats, (rows, k); or a reward model's rewards.
        reference_logps: of all examples' completions under the reference, (examples, k), or None.

    Returns:
        `Scores`, on the device of logps.
    """
    index = torch.as_tensor(rows)
    return Scores(
        logps,
        examples.lengths[index].to(logps.device),
        None if reference_logps is None else reference_logps[index].to(logps.device),
        None if examples.rewards is None else examples.rewards[index].to(logps.device),
        examples.mean_length,
    )


def score_all(
    scorer: Callable[..., Tensor], layout: Callable[..., Any], processes: Processes, at_once: int, examples: Examples
) -> Tensor:
    """Log-probability, or reward, of every completion, without gradient: what is cached of a reference.

    Args:
        scorer: from a batch to a number for each completion, see `Scorer`.
        layout: makes such a batch of sequences.
        processes: which share the work.
        at_once: examples read together: as many as fit in memory with a gradient fit without.
        examples: what to score.

    Returns:
        The scorer's numbers, shape (examples, k), on the CPU.
    """
    logps = torch.zeros(len(examples), examples.k)
    by_width = sorted(range(len(examples)), key=examples.widths.__getitem__)
    batches = [by_width[first : first + at_once] for first in range(0, len(by_width), at_once)]
    with torch.no_grad():
        for rows in batches[processes.accelerator.process_index :: processes.number]:
            batch = layout(examples.select(rows), device=processes.device)
            logps[rows] = scorer(batch).view(len(rows), -1).float().cpu()
    return processes.add(logps)


def measure(losses: Tensor, scores: Scores) -> dict[str, float]:
    """Metrics of a batch.

    Args:
        losses: one an example, (examples,).
        scores: of the same batch.

    Returns:
        `loss`; for pairs also `chosen` and `rejected`, mean log-ratios to the reference (log-probabilities for a
        method without one, rewards for a reward model), their difference `margin`, and `accuracy`, how often it is
        positive. In nats, without β. For rankings `accuracy` is the share of the pairs of different rewards that are
        ordered right, mean over the rankings; where all rewards are equal, a half.
    """
    found = {"loss": losses.detach().mean().item()}
    levels = scores.policy_logps.detach()
    if scores.rewards is not None:
        found["accuracy"] = _ordered_right(levels, scores.rewards).mean().item()
    elif levels.shape[1] >= 2:
        if scores.reference_logps is not None:
            levels = levels - scores.reference_logps
        margins = levels[:, 0] - levels[:, 1]
        found |= {
            "chosen": levels[:, 0].mean().item(),
            "rejected": levels[:, 1].mean().item(),
            "margin": margins.mean().item(),
            "accuracy": (margins > 0).float().mean().item(),
        }
    return found


def _ordered_right(levels: Tensor, rewards: Tensor) -> Tensor:
    better = rewards[:, :, None] > rewards[:, None, :]
    right = better & (levels[:, :, None] > levels[:, None, :])
    pairs = better.sum(dim=(1, 2))
    return torch.where(pairs > 0, right.sum(dim=(1, 2)) / pairs.clamp(min=1), 0.5)  # (rankings,)


def evaluate_held_out(
    logps: Tensor,
    held_out: Examples,
    reference_logps: Tensor | None,
    method: Method,
    strengths: Mapping[str, float],
) -> dict[str, float]:
    """`measure` on records that are not trained on.

    Args:
        logps: of their completions under the policy, or their rewards, from `score_all`.
        held_out: the records.
        reference_logps: of their completions under the reference, (examples, k), or None.
        method: whose loss is reported.
        strengths: its hyperparameters.

    Returns:
        The same metrics, `held_out_` before their names.
    """
    scores = scores_of(held_out, range(len(held_out)), logps, reference_logps)
    return {f"held_out_{name}": value for name, value in measure(method.loss(scores, **strengths), scores).items()}


def reference_of(model: PreTrainedModel | PeftModel, *, at_once: int) -> Callable[[Sequences], Tensor]:
    """The model as it is now, to be asked for log-probabilities later: a copy, or its layers without new adapters.

    Args:
        model: about to be trained.
        at_once: sequences read together.

    Returns:
        A function like `dapedu.models.score` of the untrained model.
    """
    ends = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    if not ends or any(end.any() for end in ends):  # adapters that were trained before belong to the reference
        return partial(score, copy.deepcopy(model), batch_size=at_once)

    def without_adapters(sequences: Sequences) -> Tensor:
        with cast("PeftModel", model).disable_adapter():
            return score(model, sequences, batch_size=at_once)

    return without_adapters


def estimate_kl(
    policy: PreTrainedModel | PeftModel,
    reference: Callable[[Sequences], Tensor],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    seed: int,
    *,
    at_once: int,
) -> float:
    """KL(π‖π_ref) of whole completions, from one sample a prompt.

    Args:
        policy: the model that is trained.
        reference: from `reference_of`.
        tokenizer: theirs.
        prompts: what to complete, see `kl_prompts`; one may stand there several times.
        seed: of the samples.
        at_once: sequences scored together.

    Returns:
        Nats; unbiased, so it may be below 0 where the KL is small. Of completions of at most 64 tokens, or as many as
        the model can read behind the longest prompt.
    """
    room = _SAMPLED
    if (limit := getattr(policy.config.get_text_config(), "max_position_embeddings", None)) is not None:
        heads = encode_prompts(prompts, tokenizer)
        room = min(room, limit - max(map(len, heads)))
    samples = sample(policy, tokenizer, prompts, max_new_tokens=room, seed=seed, every_token=True)
    policy_logps = score(policy, samples.sequences, batch_size=at_once)
    return float((policy_logps - reference(samples.sequences)).mean())


def kl_prompts(
    held_out: Sequence[Record], model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, number: int
) -> list[str]:
    """What the KL is estimated on: the held-out prompts, as often as it takes.

    Args:
        held_out: records with text.
        model, tokenizer: what is to complete the prompts.
        number: of prompts.

    Returns:
        Prompts that take no more than half of what the model can read; none if all do.
    """
    prompts = [record["prompt"] for record in held_out]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and prompts:
        heads = encode_prompts(prompts, tokenizer)
        room = [prompt for prompt, head in zip(prompts, heads, strict=True) if 2 * len(head) <= limit]
        if not room and number:
            warnings.warn(
                "no KL is estimated: every held-out prompt fills half of what the model can read", stacklevel=2
            )
        prompts = room
    return list(itertools.islice(itertools.cycle(prompts), number))


class Clock:
    """Tokens of the data a second, prompts counted with each completion, since one last asked."""

    def __init__(self) -> None:
        self.tokens, self.start = 0, time.perf_counter()

    def rate(self) -> float:
        """Tokens a second; starts anew."""
        now = time.perf_counter()
        rate = self.tokens / (now - self.start)
        self.tokens, self.start = 0, now
        return rate


class Log:
    """`log.csv` and TensorBoard's file in a run's folder; nothing without a run.

    Args:
        run: where to write, or None.
        start: the step that the run goes on from, see `Run.trim_log`.
        columns: of the table, `step` first.
    """

    def __init__(self, run: Run | None, start: int, columns: Sequence[str]) -> None:
        self._run = run
        if run is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        is_new = not run.log.exists()
        self._file = run.log.open("a", encoding="utf8", newline="")
        self._table = csv.DictWriter(self._file, columns, lineterminator="\n")
        if is_new:
            self._table.writeheader()
        self._board = SummaryWriter(str(run.folder), purge_step=start + 1)

    def write(self, record: Mapping[str, float]) -> dict[str, float]:
        """Add a row, at once on disk.

        Args:
            record: `step` and numbers, names among the columns.

        Returns:
            The row as it will be read again if the run is resumed: numbers of six digits.
        """
        step = int(record["step"])
        texts = {name: f"{value:.6g}" for name, value in record.items() if name != "step"}
        if self._run is not None:
            self._table.writerow({"step": step, **texts})
            self._file.flush()
            for name, text in texts.items():
                self._board.add_scalar(name, float(text), step)
        return {"step": step, **{name: float(text) for name, text in texts.items()}}

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            self._file.close()
            self._board.close()
