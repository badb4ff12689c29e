"""The command `dapedu`: train and evaluate small models, rerun the book's results, judge its claims."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from dapedu import __version__
from dapedu.cli import language_models, published, reinforcement, rounds, training

_DESCRIPTION = """\
From preferences to an aligned model, on a laptop or a GPU. A first session, about two minutes on a CPU:

  dapedu sft   --data data/reviews/train.jsonl --output runs/sft
  dapedu data pairs --model runs/sft --number 4096 --output runs/pairs.jsonl
  dapedu train --method dpo --beta 1 --model runs/sft --data runs/pairs.jsonl --output runs/dpo
  dapedu evaluate --model runs/dpo --reference runs/sft
  dapedu sample   --model runs/dpo

The same without pairs, on the model's own completions, which a reward ranks:

  dapedu rounds --method rrhf --model runs/sft --prompts runs/pairs.jsonl --reward gold --output runs/rrhf

The same aim by reinforcement learning, a minute or two more:

  dapedu reward --model runs/sft --data runs/pairs.jsonl --output runs/reward
  dapedu ppo --beta 1 --model runs/sft --prompts runs/pairs.jsonl --reward runs/reward --output runs/ppo
  dapedu evaluate --model runs/ppo --reference runs/sft --reward runs/reward

Every command explains itself:  dapedu train --help
"""

_EPILOG = """\
exit status: 0 done; 1 training diverged or had nothing to learn from, or a file could not be written; 2 the words or
the files make no sense, and nothing was started; 130 interrupted (Ctrl-C), after saving what can be resumed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `dapedu`, also `python -m dapedu`.

    Args:
        arguments: the words after the command's name; None takes the shell's.

    Returns:
        The exit status.

    Raises:
        SystemExit: the words make no sense (status 2, with a line that says what would) or ask for help.
    """
    parser = argparse.ArgumentParser(
        prog="dapedu", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"dapedu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    training.add_commands(commands)
    rounds.add_commands(commands)
    reinforcement.add_commands(commands)
    language_models.add_commands(commands)
    published.add_commands(commands)
    try:
        try:
            options = parser.parse_args(arguments)
            return options.run(options)
        finally:
            sys.stdout.flush()  # a closed pipe shows here, not when Python has ended
    except KeyboardInterrupt as interrupt:
        print(f"dapedu: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dapedu sample … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 0
    except OSError as problem:
        print(f"dapedu: {problem}", file=sys.stderr)
        return 1
