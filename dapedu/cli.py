"""Rerun the book's published experiments, and judge its claims by their results."""

import argparse
from collections.abc import Sequence

from dapedu import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `dapedu`, also `python -m dapedu`.

    Args:
        arguments: the words after the command's name; None takes the shell's.

    Returns:
        The exit status.

    Raises:
        SystemExit: the words make no sense (status 2, with a line that says what would) or ask for help.
    """
    parser = argparse.ArgumentParser(prog="dapedu", description=__doc__)
    parser.add_argument("--version", action="version", version=f"dapedu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    results = commands.add_parser(
        "results",
        help="run the published experiments and write data/results/",
        description="Run published experiments and write data/results/. Each takes seconds to a few minutes.",
    )
    results.add_argument("names", nargs="*", metavar="NAME", help="which experiments (default: all)")
    results.add_argument("--list", action="store_true", help="list the experiments and stop")
    results.set_defaults(run=_results, parser=results)

    claims = commands.add_parser(
        "claims",
        help="judge the registered claims by the stored results",
        description="Show claims of the papers with what was measured and the verdict that follows.",
    )
    claims.add_argument("ids", nargs="*", metavar="ID", help="which claims (default: all)")
    claims.set_defaults(run=_claims, parser=claims)

    options = parser.parse_args(arguments)
    return options.run(options)


def _results(options: argparse.Namespace) -> int:
    from dapedu import experiments

    if options.list:
        for name, function in experiments.EXPERIMENTS.items():
            print(f"{name:20} {(function.__doc__ or '').splitlines()[0]}")
        return 0
    names = options.names or list(experiments.EXPERIMENTS)
    for name in names:  # all of them, before any work starts
        if name not in experiments.EXPERIMENTS:
            options.parser.error(f"no experiment {name!r}; `dapedu results --list` shows them")
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name} …", flush=True)
        path = experiments.run(name)
        print(f"        wrote {path}")
    return 0


def _claims(options: argparse.Namespace) -> int:
    from dapedu import claims

    for name in options.ids:
        if name not in claims.CLAIMS:
            options.parser.error(f"no claim {name!r}; there are {', '.join(claims.CLAIMS)}")
    try:
        print(claims.select(*options.ids))
    except FileNotFoundError as missing:  # it says which command makes the evidence
        options.parser.exit(2, f"dapedu: {missing}\n")
    return 0
