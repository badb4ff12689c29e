"""`dapedu reproduce`, `claims` and `bandit`: the book's results, its verdicts, and its smallest world."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

from dapedu.cli.inputs import refuse

_VERDICTS = ("holds", "conditional", "fails", "untested")  # `dapedu.claims.Verdict`, without waiting for its import


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands.

    Args:
        commands: the parser's.
    """
    bandit = commands.add_parser(
        "bandit",
        help="three responses: where a method leads, and where it should",
        description="Train the three-response bandit on one of the book's datasets and print π beside the closed form.",
    )
    bandit.add_argument("--dataset", default="D1", help="D1, D2, 'D3 as printed' or 'D3 as meant' (default: D1)")
    bandit.add_argument("--method", choices=("dpo", "ipo"), default="ipo", help="(default: ipo)")
    bandit.add_argument(
        "--strengths", type=float, nargs="+", default=[0.1, 0.5, 1.0], metavar="β", help="β or τ (default: .1 .5 1)"
    )
    bandit.add_argument("--seeds", type=int, default=10, help="(default: 10)")
    bandit.add_argument("--steps", type=int, default=18_000, help="of Adam (default: 18000, as the IPO paper)")
    bandit.set_defaults(run=_bandit, parser=bandit)

    reproduce = commands.add_parser(
        "reproduce",
        help="rerun published results and write data/results/",
        description=(
            "Rerun published results and write data/results/NAME.json: settings, seeds, commit, machine, time and "
            "numbers. On the same machine the numbers come out identical. An interrupted run goes on where it was."
        ),
    )
    reproduce.add_argument("names", nargs="*", metavar="NAME", help="which results")
    reproduce.add_argument("--list", action="store_true", help="list the results with the time that each took; stop")
    reproduce.add_argument("--all", action="store_true", help="all of them")
    reproduce.add_argument("--dry-run", action="store_true", help="say what would be run, and how long it took before")
    reproduce.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, one core each (default: %(default)s)"
    )
    reproduce.set_defaults(run=_reproduce, parser=reproduce)

    claims = commands.add_parser(
        "claims",
        help="judge the registered claims by the stored results",
        description="Show claims of the source and the papers with what was measured and the verdict that follows.",
    )
    claims.add_argument("ids", nargs="*", metavar="ID", help="which claims (default: all)")
    claims.add_argument("--verdict", choices=_VERDICTS, help="only those with this verdict")
    claims.set_defaults(run=_claims, parser=claims)


def _bandit(options: argparse.Namespace) -> int:
    from dapedu.bandit import DATASETS, ipo_optimum, train_bandit
    from dapedu.evaluate import mean_interval
    from dapedu.losses import dpo_loss, ipo_loss

    if options.dataset not in DATASETS:
        refuse(options, f"no dataset {options.dataset!r}; there are {', '.join(DATASETS)}")
    pairs = DATASETS[options.dataset]
    loss = dpo_loss if options.method == "dpo" else ipo_loss
    try:
        run = train_bandit(pairs, loss, options.strengths, n_responses=3, seeds=options.seeds, steps=options.steps)
        mean, half_width = mean_interval(run.probabilities[:, :, -1], dim=1)
    except ValueError as problem:
        refuse(options, problem)
    symbol = "β" if options.method == "dpo" else "τ"
    print(f"{options.dataset}: " + ", ".join(f"{'abc'[winner]} ≻ {'abc'[loser]}" for winner, loser in pairs))
    for row, strength in enumerate(options.strengths):
        ends = "   ".join(
            f"π({name}) = {mean[row, column]:.3f} ± {half_width[row, column]:.3f}" for column, name in enumerate("abc")
        )
        print(f"{symbol} = {strength:<6g} {ends}")
        if options.method == "ipo":
            optimum = ipo_optimum(pairs, strength, n_responses=3)
            print("   optimum" + "   ".join(f" π({n}) = {p:.3f}        " for n, p in zip("abc", optimum, strict=True)))
    print(f"after {options.steps:,} steps, mean of {options.seeds} seeds ± 95 % interval")
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from dapedu import experiments
    from dapedu.experiments import units

    if options.list:
        for name, function in experiments.EXPERIMENTS.items():
            print(f"{name:26} {_time_taken(name):>8}  {(function.__doc__ or '').splitlines()[0]}")
        print(f"{'all':26} {_time_taken(*experiments.EXPERIMENTS):>8}  {len(experiments.EXPERIMENTS)} results")
        return 0
    if options.all == bool(options.names):
        refuse(options, "name results, or say --all; `dapedu reproduce --list` shows them")
    if options.jobs < 1:
        refuse(options, f"--jobs is {options.jobs}, expected at least 1")
    names = options.names or list(experiments.EXPERIMENTS)
    for name in names:  # all of them, before any work starts
        if name not in experiments.EXPERIMENTS:
            refuse(options, f"no result {name!r}; `dapedu reproduce --list` shows them")
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name}, {_time_taken(name)} before", flush=True)
        if not options.dry_run:
            before = _results(name)
            path = experiments.run(name, jobs=options.jobs)
            now = _results(name)
            same = "" if before is None else ", as before" if now == before else ", not as before: see git diff"
            print(f"        wrote {path}{same}")
    if options.dry_run:
        print(f"together {_time_taken(*names)}")
    else:
        units.clear_scratch()
    return 0


def _results(name: str) -> Any:
    """The stored numbers, if there are any."""
    from dapedu import experiments

    try:
        return experiments.load(name)["results"]
    except FileNotFoundError:
        return None


def _time_taken(*names: str) -> str:
    """How long these results took, together, as far as they are stored."""
    from dapedu import experiments

    stored = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            stored.append(experiments.load(name)["seconds"])
    if not stored:
        return "not run"
    seconds = sum(stored)
    if seconds >= 3 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _claims(options: argparse.Namespace) -> int:
    from dapedu import claims

    for name in options.ids:
        if name not in claims.CLAIMS:
            refuse(options, f"no claim {name!r}; there are {', '.join(claims.CLAIMS)}")
    try:
        asked = claims.select(*options.ids)
        print(asked if options.verdict is None else asked.having(claims.Verdict[options.verdict.upper()]))
    except FileNotFoundError as missing:  # it says which command makes the evidence
        refuse(options, missing)
    return 0
