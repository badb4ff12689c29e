"""The command `dapedu` (also `python -m dapedu`)."""

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dapedu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    results = commands.add_parser(
        "results",
        help="run the published experiments and write data/results/",
        description="Each takes seconds to a minute.",
    )
    results.add_argument("names", nargs="*", metavar="NAME", help="which experiments (default: all)")
    results.add_argument("--list", action="store_true", help="list the experiments and stop")
    results.set_defaults(run=_results)

    claims = commands.add_parser("claims", help="judge the registered claims by the stored results")
    claims.add_argument("ids", nargs="*", metavar="ID", help="which claims (default: all)")
    claims.set_defaults(run=_claims)

    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (
        ValueError,
        FileNotFoundError,
    ) as error:  # ours, and they say what to do; a bug keeps its traceback
        parser.exit(2, f"dapedu: {error}\n")


def _results(options: argparse.Namespace) -> int:
    from dapedu import experiments

    if options.list:
        for name, function in experiments.EXPERIMENTS.items():
            print(f"{name:20} {(function.__doc__ or '').splitlines()[0]}")
        return 0
    names = options.names or list(experiments.EXPERIMENTS)
    for name in names:  # all names are checked before any work starts
        if name not in experiments.EXPERIMENTS:
            raise ValueError(f"no experiment {name!r}; `dapedu results --list` shows them")
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name} …", flush=True)
        path = experiments.run(name)
        print(f"        wrote data/results/{path.name}")
    return 0


def _claims(options: argparse.Namespace) -> int:
    from dapedu import claims

    for claim in claims.select(*options.ids):
        print(claim, end="\n\n")
    return 0
