"""The world itself, prompts, completions, people and their rewards, and a model's table of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

    from dapedu.models import ScalarHead


class World(NamedTuple):
    """What `make_world` returns: prompts, all their completions, how people write, and what they like."""

    prompts: Tensor  # token ids, (prompts, 2)
    completions: Tensor  # token ids, (completions, length): every one there is
    human_logps: Tensor  # log-probability of each completion under the human distribution, (prompts, completions)
    rewards: Tensor  # gold reward, (prompts, completions)
    n_symbols: int

    @property
    def n_positions(self) -> int:
        """Length of prompt and completion together, in tokens."""
        return self.prompts.shape[1] + self.completions.shape[1]


def make_world(*, n_symbols: int = 6, length: int = 4, n_prompts: int = 4, seed: int = 0) -> World:
    """A world in which people write Markov chains and like one symbol of the prompt, not repetitions.

    The human distribution is a chain over symbols that starts at the prompt's last one; its rates are drawn once.
    The gold reward counts the prompt's first symbol in the completion, less the symbols that repeat the one before,
    so that each prompt has a reward, and a Z(x), of its own.

    Args:
        n_symbols: size of the alphabet, at least 2.
        length: symbols in a completion; there are n_symbols ** length completions.
        n_prompts: prompts, different pairs of symbols.
        seed: of the chain and the prompts.

    Returns:
        `World`, log-probabilities and rewards in float32.

    Raises:
        ValueError: a count is out of range.
    """
    if n_symbols < 2 or length < 1:
        raise ValueError(f"make_world: n_symbols is {n_symbols} and length {length}, expected at least 2 and 1")
    if not 1 <= n_prompts <= n_symbols**2:
        raise ValueError(f"make_world: n_prompts is {n_prompts}, expected from 1 to {n_symbols**2}, n_symbols squared")
    generator = torch.Generator().manual_seed(seed)
    chain = torch.log_softmax(1.5 * torch.randn(n_symbols, n_symbols, generator=generator), dim=-1)
    pairs = torch.tensor(list(itertools.product(range(n_symbols), repeat=2)))
    prompts = pairs[torch.randperm(len(pairs), generator=generator)[:n_prompts]]
    completions = torch.tensor(list(itertools.product(range(n_symbols), repeat=length)))
    start = chain[prompts[:, 1]][:, completions[:, 0]]
    human_logps = start + chain[completions[:, :-1], completions[:, 1:]].sum(dim=1)
    liked = (completions == prompts[:, :1, None]).sum(dim=2)
    repeated = (completions[:, 1:] == completions[:, :-1]).sum(dim=1)
    return World(prompts, completions, human_logps, (liked - repeated).float(), n_symbols)


def completion_logps(model: GPT2LMHeadModel, world: World) -> Tensor:
    """Log-probability of every completion of every prompt.

    Completions share their beginnings, and the model reads each beginning once. All of them follow the prompt in one
    text, as a tree: a symbol stands at the position of its depth and sees only the beginning that it continues.

    Args:
        model: a causal language model whose vocabulary is the world's symbols.
        world: of `make_world`.

    Returns:
        Nats, shape (prompts, completions); differentiable. They sum to 1 as probabilities, for each prompt.

    Raises:
        ValueError: the model's vocabulary is another.
    """
    _require_symbols("completion_logps: model", model.config.vocab_size, world)
    n, length = world.n_symbols, world.completions.shape[1]
    n_prompts, prompt_length = world.prompts.shape
    counts = [1] * prompt_length + [n**depth for depth in range(1, length)]  # symbols at each position
    positions = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    places = torch.cat([torch.arange(count) for count in counts])  # among those at the same position
    back = positions[:, None] - positions
    sees = (back >= 0) & (places[:, None] // n ** back.clamp(min=0) == places)  # (symbols, symbols)
    tree = torch.cat([world.prompts, (places[prompt_length:] % n).expand(n_prompts, -1)], dim=1)
    logits = model(
        input_ids=tree.to(model.device),
        position_ids=positions.expand_as(tree).to(model.device),
        attention_mask=sees.expand(n_prompts, 1, -1, -1).to(model.device),
    ).logits[:, prompt_length - 1 :]
    choices = torch.log_softmax(logits.float(), dim=-1)  # (prompts, beginnings, n)
    logps = torch.zeros(n_prompts, 1, device=model.device)
    for after in choices.split(counts[prompt_length - 1 :], dim=1):
        logps = (logps[:, :, None] + after).flatten(1)
    return logps


def completion_rewards(head: ScalarHead, world: World) -> Tensor:
    """Reward of every completion of every prompt: the number of its last symbol, which has seen all of both.

    Completions that differ in the last symbol alone are read as one text: all last symbols stand at one position and
    see what comes before them, but not each other.

    Args:
        head: of a transformer whose vocabulary is the world's symbols.
        world: of `make_world`.

    Returns:
        Float32, shape (prompts, completions); differentiable.

    Raises:
        ValueError: the transformer's vocabulary is another.
    """
    _require_symbols("completion_rewards: head", head.transformer.config.vocab_size, world)
    n, device = world.n_symbols, head.device
    beginnings = world.completions[::n, :-1]  # each without its last symbol
    shape = (len(world.prompts), len(beginnings), -1)
    texts = torch.cat(
        [world.prompts[:, None].expand(shape), beginnings.expand(shape), torch.arange(n).expand(*shape[:2], n)], dim=2
    ).flatten(0, 1)
    places = torch.arange(texts.shape[1])
    before = texts.shape[1] - n
    sees = (places <= places[:, None]) & (places < before) | (places == places[:, None])  # (symbols, symbols)
    hidden = head.transformer(
        input_ids=texts.to(device),
        position_ids=places.clamp(max=before).expand_as(texts).to(device),
        attention_mask=sees.expand(len(texts), 1, -1, -1).to(device),
    ).last_hidden_state[:, before:]
    return head.linear(hidden.float()).view(len(world.prompts), -1)


def _require_symbols(what: str, vocabulary: int, world: World) -> None:
    if vocabulary != world.n_symbols:
        raise ValueError(f"{what} has a vocabulary of {vocabulary}, expected {world.n_symbols} symbols")
