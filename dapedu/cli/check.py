"""`dapedu data check`: what a file of records holds, before anything is trained on it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dapedu.cli.inputs import at_least_one, attempt, load_tokenizer, output_file, refuse, refuse_same_records

if TYPE_CHECKING:
    from dapedu.data import Report

_DESCRIPTION = """\
Say of preferences, demonstrations or rankings how many can be used and why others cannot, how long they are, what
repeats or contradicts, and which prompts are held out as well. Positions are shown, never text. For example

  dapedu data check pairs.jsonl --tokenizer runs/sft --max-length 512 --output clean.jsonl
"""

_EPILOG = """\
exit status: 0 everything can be used; 1 something cannot; 2 something could not be read at all.
"""


def add_check(kinds: argparse._SubParsersAction) -> None:
    """Add the command.

    Args:
        kinds: of `dapedu data`.
    """
    parser = kinds.add_parser(
        "check",
        help="what a file of records holds, and what of it cannot be used",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help=".jsonl, .jsonl.gz, .json, .csv, .parquet, a folder of Dataset.save_to_disk, or owner/name[:config] of "
        "the Hugging Face hub",
    )
    parser.add_argument(
        "--kind",
        choices=["preferences", "demonstrations", "rankings"],
        help="of the records (default: what their fields suggest)",
    )
    parser.add_argument("--split", default="train", help="of a dataset that has several (default: train)")
    parser.add_argument("--held-out", metavar="FILE", help="count the prompts that stand there too")
    parser.add_argument("--held-out-split", default="train", metavar="SPLIT", help="of that (default: train)")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="count tokens by this model's tokenizer")
    parser.add_argument("--max-length", type=at_least_one, metavar="N", help="tokens: count what must be cut to fit")
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help="a new .jsonl file for the records that can be used"
    )
    parser.add_argument("--list", type=int, default=5, metavar="N", help="positions shown of each sort (default: 5)")
    parser.set_defaults(run=_check, parser=parser)


def _check(options: argparse.Namespace) -> int:
    from dapedu.data import DataError, check_records

    if options.max_length is not None and not options.tokenizer:
        refuse(options, "--max-length counts tokens, so it needs --tokenizer")
    if options.list < 0:
        refuse(options, f"--list is {options.list}, expected at least 0")
    if options.output and not options.output.endswith(".jsonl"):
        refuse(options, f"--output is {options.output}, expected a name that ends with .jsonl")
    if options.output and Path(options.output).exists():
        refuse(options, f"--output is {options.output}, which exists already; remove it or choose another name")
    for file in options.files:
        refuse_same_records(options, file)
    tokenizer = load_tokenizer(options, options.tokenizer) if options.tokenizer else None
    reports: list[Report] = []
    for file in options.files:
        try:
            report = check_records(
                file,
                kind=options.kind,
                split=options.split,
                held_out=options.held_out,
                held_out_split=options.held_out_split,
                tokenizer=tokenizer,
                max_length=options.max_length,
                progress=True,
            )
        except DataError as problem:
            print(f"{options.parser.prog}: {problem}", file=sys.stderr)
        except ValueError as problem:
            refuse(options, problem)
        else:
            print(report.table(listed=options.list), end="\n\n" if file is not options.files[-1] else "\n")
            reports.append(report)
    if options.output:
        _write(options, reports)
    if len(reports) < len(options.files):
        return 2
    return int(any(report.problems for report in reports))


def _write(options: argparse.Namespace, reports: list[Report]) -> None:
    from dapedu.data import save_records

    if len({report.kind for report in reports}) > 1:
        refuse(options, "--output: the files hold records of different kinds, which no file may; check them one by one")
    if len({len(record.get("completions", ())) for report in reports for record in report.usable}) > 1:
        refuse(options, "--output: the files' rankings differ in their number of completions; check them one by one")
    records = [record for report in reports for record in report.usable]
    if not records:
        print(f"{options.parser.prog}: nothing can be used, so nothing was written", file=sys.stderr)
        return
    attempt(options, lambda: save_records(options.output, records))
    print(f"wrote {len(records):,} {reports[0].kind} to {options.output}")
