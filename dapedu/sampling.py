"""Completions drawn from a model, in batches, with transformers' `generate` and its key-value cache.

`generate` costs about as much as a loop of ten lines written for the purpose (with the tiny GPT-2, a tenth more),
so the library's is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from dapedu.data import Sequences, encode_prompts
from dapedu.models import evaluating

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Samples:
    """What `sample` returns, one entry a completion."""

    prompts: list[str]
    completions: list[str]  # without special tokens
    finished: list[bool]  # whether the model ended it, with an end-of-sequence token
    sequences: Sequences  # the tokens drawn, with the end-of-sequence token where there is one

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, rows: Sequence[int]) -> Samples:
        """Some of the samples.

        Args:
            rows: their numbers, in the order wanted.

        Returns:
            Samples of those rows.
        """
        return Samples(
            [self.prompts[row] for row in rows],
            [self.completions[row] for row in rows],
            [self.finished[row] for row in rows],
            self.sequences.select(rows),
        )


def sample(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 512,
    every_token: bool = False,
    progress: bool = False,
) -> Samples:
    """One completion of each prompt, drawn token by token from softmax(logits / temperature).

    Special tokens other than the end-of-sequence token are never drawn, nor ids that the tokenizer does not have;
    the others keep their proportions. Generation settings stored with the model are not used.

    Args:
        model: a causal language model, on any device; drawn from in evaluation mode.
        tokenizer: the model's; without an end-of-sequence token, every completion has max_new_tokens.
        prompts: at least one; name a prompt several times for several samples of it.
        max_new_tokens: longest completion, in tokens.
        temperature: 1 draws from the model, less is safer text, 0 takes the likeliest token each time.
        top_k: draw among the k likeliest tokens only; 0 among all.
        seed: of all draws. The same seed, prompts and batch_size give the same samples on the same machine, and the
            caller's random numbers go on as before.
        batch_size: prompts completed at once; those of like length go together. Each batch has random numbers of its
            own, so what one draws does not depend on how long another takes.
        every_token: draw special tokens too, and ids that the tokenizer does not have: no text to read, but what an
            unbiased estimate of a KL needs.
        progress: whether to show a progress bar.

    Returns:
        `Samples`, in the order of prompts.

    Raises:
        ValueError: a number is out of range, there are no prompts, a prompt has no tokens, or prompt and completion
            together are longer than the model can read.
    """
    from tqdm import tqdm
    from transformers import GenerationConfig

    for name, number, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("temperature", temperature, 0),
        ("top_k", top_k, 0),
        ("batch_size", batch_size, 1),
    ):
        if not number >= least:
            raise ValueError(f"sample: {name} is {number}, expected at least {least}")
    heads = _prompt_ids(model, tokenizer, prompts, max_new_tokens)
    eos = tokenizer.eos_token_id
    unknown = range(len(tokenizer), model.config.get_text_config().vocab_size)
    never = set() if every_token else set(tokenizer.all_special_ids) - {eos} | set(unknown)
    draw = {"do_sample": True, "temperature": float(temperature), "top_k": top_k} if temperature else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=eos,
        # Fills up what has ended, and is cut off again; transformers warns of a missing mask where it meets padding.
        pad_token_id=heads[0][0],
        suppress_tokens=sorted(never) or None,
        use_cache=True,
        **draw,
    )
    tails: list[list[int]] = [[] for _ in heads]
    order = sorted(range(len(heads)), key=lambda row: len(heads[row]))
    seeds = torch.Generator().manual_seed(seed)
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        tqdm(total=len(heads), desc="sampling", disable=not progress) as bar,
        torch.random.fork_rng(devices=devices),
        evaluating(model),
        _without_stored_settings(model),
    ):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=seeds)))
            input_ids, attention_mask = _pad_left([heads[row] for row in rows])
            output = cast("GenerationMixin", model).generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=config,
            )
            for row, tail in zip(rows, output[:, input_ids.shape[1] :].tolist(), strict=True):
                tails[row] = tail[: tail.index(eos) + 1] if eos in tail else tail
            bar.update(len(rows))
    return Samples(
        prompts=list(prompts),
        completions=tokenizer.batch_decode(tails, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        finished=[tail[-1] == eos for tail in tails],
        sequences=Sequences(
            [head + tail for head, tail in zip(heads, tails, strict=True)], [len(head) for head in heads]
        ),
    )


def best_of_n(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Callable[[Samples], Tensor | Sequence[float]],
    *,
    n: int,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 512,
    progress: bool = False,
) -> Samples:
    """The completion of largest reward among n samples of each prompt; of equals, the one drawn first.

    Args:
        model, tokenizer, max_new_tokens, temperature, top_k, seed, batch_size, progress: as `sample`.
        prompts: at least one.
        reward: from the samples, n · prompts of them, to one number each.
        n: samples a prompt.

    Returns:
        `Samples`, one a prompt, in the order of prompts.

    Raises:
        ValueError: as `sample`, n is not positive, or reward gives another number of rewards or one that is NaN.
    """
    if n < 1:
        raise ValueError(f"best_of_n: n is {n}, expected at least 1")
    samples = sample(
        model,
        tokenizer,
        [prompt for prompt in prompts for _ in range(n)],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    rewards = torch.as_tensor(reward(samples))
    if rewards.shape != (len(samples),):
        raise ValueError(
            f"best_of_n: reward gives shape {tuple(rewards.shape)}, expected {(len(samples),)}, one a sample"
        )
    if rewards.isnan().any():
        raise ValueError(f"best_of_n: reward gives NaN for sample {int(rewards.isnan().nonzero()[0])}")
    best = rewards.view(-1, n).argmax(dim=1).tolist()
    return samples.select([n * prompt + place for prompt, place in enumerate(best)])


def _prompt_ids(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> list[list[int]]:
    if not prompts:
        raise ValueError("sample: prompts is empty, expected at least one")
    heads = encode_prompts(prompts, tokenizer)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, head in enumerate(heads):
        if limit is not None and len(head) + max_new_tokens > limit:
            raise ValueError(
                f"sample: prompt {number} has {len(head)} tokens, which with max_new_tokens {max_new_tokens} is more "
                f"than the {limit} that the model can read"
            )
    return heads


def _pad_left(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """On the left, so that all completions begin at one position."""
    width = max(map(len, rows))
    input_ids, attention_mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for row, ids in enumerate(rows):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention_mask[row, width - len(ids) :] = 1
    return input_ids, attention_mask


@contextmanager
def _without_stored_settings(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """`generate` fills what a call leaves open from the model's settings: a repetition penalty, a top-p."""
    from transformers import GenerationConfig

    stored, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = stored
