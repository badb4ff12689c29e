"""One function a published result; `dapedu reproduce` runs them and writes data/results/<name>.json.

A function's keyword defaults are its settings and are stored with what it returns, beside the commit, the
machine and the time. The chapters read these files next to a smaller live run; the claims are judged by them.
"""

import inspect
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dapedu.experiments import (
    bandit,
    click,
    comparison,
    cost,
    coverage,
    enumerable,
    hacking,
    noise,
    objective,
    policy_gradient,
    ppo_details,
    ranking,
    reviews,
    reward_model,
    rlhf,
    spin,
    spin_exact,
    throughput,
    units,
)
from dapedu.experiments.units import RESULTS

_CHECKOUT = Path(__file__).resolve().parents[2]

EXPERIMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (
        bandit.bandit_figures,
        bandit.closed_forms,
        bandit.finite_data,
        bandit.displacement,
        bandit.kl_at_the_edge,
        bandit.bandit_benchmark,
        objective.best_of_n_kl,
        objective.beta_and_kl,
        noise.noise_map,
        noise.noise_stopping,
        enumerable.enumerable_optimum,
        enumerable.enumerable_frontier,
        reviews.reviews_frontier,
        reviews.reviews_overoptimisation,
        reviews.reviews_gap,
        reviews.reviews_noise,
        policy_gradient.bandit_policy_gradient,
        policy_gradient.enumerable_policy_gradient,
        reward_model.enumerable_reward_model,
        rlhf.reviews_tuning,
        rlhf.reviews_dpo_against_ppo,
        rlhf.reviews_stability,
        ppo_details.reviews_ppo_details,
        reward_model.reviews_reward_model,
        reward_model.reviews_goodhart,
        coverage.reviews_coverage,
        ranking.reviews_ranking_tuning,
        ranking.reviews_slic_hf,
        ranking.reviews_rrhf,
        hacking.reviews_hacking,
        hacking.reviews_teacher,
        click.reviews_click,
        spin_exact.enumerable_spin,
        spin.reviews_spin,
        comparison.reviews_comparison,
        comparison.reviews_comparison_seconds,
        cost.cost_memory,
        cost.cost_seconds,
        throughput.throughput,
    )
}


def run(name: str, *, jobs: int = 1) -> Path:
    """Run one experiment and write its result file.

    Args:
        name: a key of `EXPERIMENTS`.
        jobs: its independent runs worked on at once; the numbers do not depend on it.

    Returns:
        The file written.

    Raises:
        ValueError: there is no such experiment; the message lists them.
    """
    return store(name, EXPERIMENTS[_checked("run", name)], jobs=jobs)


def store(name: str, function: Callable[..., dict[str, Any]], *, jobs: int = 1) -> Path:
    """Call an experiment's function and write its result file.

    Args:
        name: the file's.
        function: returns the numbers; its keywords' defaults are its settings.
        jobs: as `run`.

    Returns:
        The file written.
    """
    start = time.perf_counter()
    with units.parallel(jobs) as spent_before:
        results = function()
    record = {
        "experiment": name,
        "settings": settings_of(function),
        "commit": _commit(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "jobs": jobs,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "seconds": round(time.perf_counter() - start + sum(spent_before) / jobs, 1),
        "results": results,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".partial")  # renamed when complete, so that no half-written result is ever read
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf8")
    partial.replace(path)
    return path


def settings_of(function: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """An experiment's settings: the defaults of its keywords.

    Args:
        function: a value of `EXPERIMENTS`.

    Returns:
        Names and values.
    """
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def load(name: str) -> dict[str, Any]:
    """A stored result, whole.

    Args:
        name: a key of `EXPERIMENTS`.

    Returns:
        The record that `run` wrote, and the command that makes it; the numbers are under "results".

    Raises:
        ValueError: there is no such experiment; the message lists them.
        FileNotFoundError: it was never run here; the message says how.
    """
    path = RESULTS / f"{_checked('load', name)}.json"
    if not path.exists():
        raise FileNotFoundError(f"data/results/{name}.json is missing; `dapedu reproduce {name}` makes it")
    return {"command": f"dapedu reproduce {name}"} | json.loads(path.read_text(encoding="utf8"))


def _checked(function: str, name: str) -> str:
    if name not in EXPERIMENTS:
        raise ValueError(f"{function}: no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    return name


def _commit() -> str:
    """The commit the code was at, with a + where the package differs from it; "unknown" outside a git checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=_CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _CHECKOUT:
            return "unknown"  # a copy inside somebody else's repository
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "dapedu") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
