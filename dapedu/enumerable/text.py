"""The world as text, for what draws completions instead of listing them: a tokenizer, prompts, rewards of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dapedu.enumerable.world import World
from dapedu.sampling import Samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A tokenizer of this world's symbols, written a, b, c … with spaces between.

    It has no end-of-sequence token: every completion is as long as the world's are, which is to be `sample`'s
    max_new_tokens.

    Args:
        world: of `make_world`, with at most 26 symbols.

    Returns:
        A fast tokenizer; the symbols' ids are theirs.

    Raises:
        ValueError: there are more symbols than letters.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if world.n_symbols > 26:
        raise ValueError(f"make_tokenizer: the world has {world.n_symbols} symbols, expected at most 26")
    letters = {chr(ord("a") + symbol): symbol for symbol in range(world.n_symbols)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="a"))  # which the format asks for
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def prompt_texts(world: World) -> list[str]:
    """The prompts as the tokenizer of `make_tokenizer` reads them.

    Args:
        world: of `make_world`.

    Returns:
        One text a prompt, in the world's order.
    """
    return [" ".join(chr(ord("a") + symbol) for symbol in prompt) for prompt in world.prompts.tolist()]


def reward_of_samples(world: World, rewards: Tensor) -> Callable[[Samples], Tensor]:
    """A table of rewards as a function of samples, such as `dapedu.ppo.train_ppo` maximises.

    Args:
        world: of `make_world`.
        rewards: of each completion, shape (prompts, completions).

    Returns:
        From samples of this world's prompts, completions of full length, to their rewards, shape (samples,).
    """
    row_of = {tuple(prompt): row for row, prompt in enumerate(world.prompts.tolist())}
    length = world.completions.shape[1]
    powers = world.n_symbols ** torch.arange(length - 1, -1, -1)  # completions are listed like numbers

    def of_samples(samples: Samples) -> Tensor:
        ids = torch.tensor(samples.sequences.input_ids)
        rows = torch.tensor([row_of[tuple(prompt)] for prompt in ids[:, :-length].tolist()])
        return rewards[rows, (ids[:, -length:] * powers).sum(dim=1)]

    return of_samples
