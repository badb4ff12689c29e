"""SPIN where every completion is listed: what one iteration does, minimised to the end or for a few steps.

The paper's λ is `beta` here, as everywhere in the package. A list over iterations begins with the model that they
start from; p_data is the human distribution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dapedu.enumerable import World, completion_logps, expected_loss, fit_humans, make_world, minimise
from dapedu.experiments.enumerable import rounded
from dapedu.experiments.reviews import by_metric
from dapedu.experiments.units import run_units
from dapedu.losses import spin_loss
from dapedu.models import tiny_gpt2

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

SHAPE = {"n_symbols": 6, "length": 3, "n_prompts": 4}


def enumerable_spin(
    *,
    betas: Sequence[float] = (0.1, 0.3, 0.5, 0.75, 1.0, 2.0),
    iterations: int = 3,
    steps: int = 400,
    lr: float = 4e-3,
    short_betas: Sequence[float] = (0.1, 1.0),
    short_lrs: Sequence[float] = (3e-6, 3e-5, 3e-4, 3e-3),
    short_iterations: int = 4,
    short_steps: int = 40,
    sft_steps: int = 30,
    shape: Mapping[str, int] = SHAPE,
    seeds: int = 5,
) -> dict[str, Any]:
    """SPIN without samples on a GPT-2: exact minimisation against |1 − 1/λ|, other opponents, and a few short steps."""
    world = {"sft_steps": sft_steps, "shape": shape}
    long = {"iterations": iterations, "steps": steps, "lr": lr}
    short = {"lrs": list(short_lrs), "iterations": short_iterations, "steps": short_steps, "betas": list(short_betas)}
    exact = run_units(contraction_unit, [{"seed": s, "betas": list(betas), **long, **world} for s in range(seeds)])
    others = run_units(opponents_unit, [{"seed": s, **long, **world} for s in range(seeds)])
    brief = run_units(short_unit, [{"seed": s, **short, **world} for s in range(seeds)])
    return {
        "exact": {key: by_metric([row[key] for row in exact]) for key in exact[0]},
        "opponents": by_metric(others),
        "short": {key: by_metric([row[key] for row in brief]) for key in brief[0]},
    }


def contraction_unit(
    *,
    seed: int,
    betas: Sequence[float],
    iterations: int,
    steps: int,
    lr: float,
    sft_steps: int,
    shape: Mapping[str, int],
) -> dict[str, dict[str, Any]]:
    """SPIN's expected loss minimised in each iteration, at several λ.

    Args:
        seed: of the world and of the model.
        betas: λ.
        iterations: from the same start.
        steps, lr: of each iteration.
        sft_steps: of the fit to the human distribution from which it starts; few, or nothing is left to do.
        shape: of the world, arguments of `make_world`.

    Returns:
        For each λ the `factor` of the first iteration, by which log p_data/π, centred, was multiplied (least squares,
        weighted by p_data), and `rest`, the share of its new size that no factor explains; KL(p_data‖π) over the
        iterations, mean over the prompts, as trained (`kl`) and by the formula (`exact_kl`).
    """
    world, start = _start_of(seed, sft_steps, shape)
    human, begin = _log_normalised(world.human_logps), _table(start, world)
    found = {}
    for beta in betas:
        policy, tables = copy.deepcopy(start), [begin]
        for _ in range(iterations):
            tables.append(_play(policy, world, beta=beta, steps=steps, lr=lr))
        factor, rest = _factor(human, tables[0], tables[1])
        paths = [(1 - 1 / beta) ** t for t in range(iterations + 1)]
        exact = [torch.log_softmax(human - shrunk * (human - begin), dim=1) for shrunk in paths]
        found[f"{beta:g}"] = {
            "factor": rounded(factor),
            "rest": rounded(rest),
            "kl": rounded([_forward_kl(human, table) for table in tables]),
            "exact_kl": rounded([_forward_kl(human, table) for table in exact]),
        }
    return found


def opponents_unit(
    *, seed: int, iterations: int, steps: int, lr: float, sft_steps: int, shape: Mapping[str, int]
) -> dict[str, list[float]]:
    """SPIN at λ = 1 against three opponents.

    Args:
        seed, iterations, steps, lr, sft_steps, shape: as `contraction_unit`.

    Returns:
        KL(p_data‖π) over the iterations, whose opponent draws from the `last` iterate, from the `last two`, half each,
        or is the `greedy` one, which writes its likeliest completion.
    """
    world, start = _start_of(seed, sft_steps, shape)
    human, begin = _log_normalised(world.human_logps), _table(start, world)

    def last_two(tables: Sequence[Tensor]) -> Tensor:
        return (tables[-1].exp() + tables[max(0, len(tables) - 2)].exp()) / 2

    def greedy(tables: Sequence[Tensor]) -> Tensor:
        return torch.zeros_like(begin).scatter(1, tables[-1].argmax(dim=1, keepdim=True), 1.0)

    opponents: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
        "last": lambda tables: tables[-1].exp(),
        "last two": last_two,
        "greedy": greedy,
    }
    found = {}
    for name, opponent in opponents.items():
        policy, tables = copy.deepcopy(start), [begin]
        for _ in range(iterations):
            tables.append(_play(policy, world, beta=1.0, steps=steps, lr=lr, opponent=opponent(tables)))
        found[name] = rounded([_forward_kl(human, table) for table in tables])
    return found


def short_unit(
    *,
    seed: int,
    betas: Sequence[float],
    lrs: Sequence[float],
    iterations: int,
    steps: int,
    sft_steps: int,
    shape: Mapping[str, int],
) -> dict[str, dict[str, list[float]]]:
    """Iterations that stop long before the minimum, at several learning rates, beside as many steps of imitation.

    Args:
        seed, iterations, steps, sft_steps, shape: as `contraction_unit`.
        betas: λ.
        lrs: learning rates.

    Returns:
        For each λ, and for `SFT`, and for each rate, KL(p_data‖π) over the iterations.
    """
    world, start = _start_of(seed, sft_steps, shape)
    human, begin = _log_normalised(world.human_logps), _table(start, world)
    kinds = {f"{beta:g}": partial(_play, beta=beta) for beta in betas} | {"SFT": _imitate}
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    for kind, play in kinds.items():
        for lr in lrs:
            policy, tables = copy.deepcopy(start), [begin]
            for _ in range(iterations):
                tables.append(play(policy, world, steps=steps, lr=lr))
            found[kind][f"{lr:g}"] = rounded([_forward_kl(human, table) for table in tables])
    return found


def _start_of(seed: int, sft_steps: int, shape: Mapping[str, int]) -> tuple[World, GPT2LMHeadModel]:
    world = make_world(**shape, seed=seed)
    model = tiny_gpt2("tiny", vocab_size=world.n_symbols, n_positions=world.n_positions, seed=seed)
    fit_humans(model, world, steps=sft_steps)
    return world, model


def _play(
    model: GPT2LMHeadModel, world: World, *, beta: float, steps: int, lr: float, opponent: Tensor | None = None
) -> Tensor:
    """One iteration on all pairs of a human completion and one of the opponent's; log π after it."""
    with torch.no_grad():
        reference = completion_logps(model, world)
    drawn = _log_normalised(reference).exp() if opponent is None else opponent
    weights = (_log_normalised(world.human_logps).exp()[:, :, None] * drawn[:, None, :]).float()
    objective = partial(expected_loss, reference_logps=reference, weights=weights, loss=spin_loss, beta=beta)
    minimise(model, objective, world, steps=steps, lr=lr)
    return _table(model, world)


def _imitate(model: GPT2LMHeadModel, world: World, *, steps: int, lr: float) -> Tensor:
    """As many steps of supervised fine-tuning on all human completions; log π after them."""
    human = world.human_logps.exp()
    minimise(model, lambda logps: -(human * logps).sum(dim=1).mean(), world, steps=steps, lr=lr)
    return _table(model, world)


def _table(model: GPT2LMHeadModel, world: World) -> Tensor:
    with torch.no_grad():
        return _log_normalised(completion_logps(model, world))


def _log_normalised(logps: Tensor) -> Tensor:
    return torch.log_softmax(logps.detach().double(), dim=1)


def _forward_kl(human: Tensor, logps: Tensor) -> float:
    """KL(p_data‖π) from logarithms, which are finite where a probability is no longer a positive float."""
    return (human.exp() * (human - logps)).sum(dim=1).mean().item()


def _factor(human: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    """The c of least squares in e_after = c e_before + rest, and the rest's share of e_after's size."""
    weights = human.exp()
    old, new = (ratios - (weights * ratios).sum(dim=1, keepdim=True) for ratios in (human - before, human - after))
    factor = (weights * old * new).sum() / (weights * old * old).sum()
    rest = (weights * (new - factor * old).square()).sum() / (weights * new.square()).sum()
    return factor.item(), rest.sqrt().item()
