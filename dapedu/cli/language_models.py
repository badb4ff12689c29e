"""`dapedu data`, `sample` and `evaluate`: what a model of the reviews reads, writes and is worth."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dapedu.cli.check import add_check
from dapedu.cli.inputs import at_least_one, attempt, load, load_head, output_file, output_name, seed
from dapedu.reviews import SPLITS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dapedu.models import ScalarHead

_LONGEST = 64  # tokens of the longest completion, as in the evaluation


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's commands.

    Args:
        commands: the parser's.
    """
    _add_data(commands)
    _add_sample(commands)
    _add_evaluate(commands)


def _add_data(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser(
        "data",
        help="write reviews, preferences or rankings, or check a file of your own",
        description="Write data of the reviews world as JSON lines, or check records from anywhere.",
    )
    kinds = data.add_subparsers(required=True, metavar="KIND")
    corpus = kinds.add_parser("corpus", help="reviews from the grammar", description="Reviews from the grammar.")
    pairs = kinds.add_parser(
        "pairs",
        help="preferences: two samples of a model a prompt, one of them chosen",
        description=(
            "Two completions of each prompt are drawn from the model. An annotator prefers the first with probability "
            "σ(sharpness · (r₁ − r₂)), r being the gold reward; the label noise turns that label."
        ),
    )
    rankings = kinds.add_parser(
        "rankings",
        help="several samples of a model a prompt, with their gold rewards",
        description="Several completions of each prompt with their gold rewards, for rrhf.",
    )
    for parser in (pairs, rankings):
        parser.add_argument("--model", required=True, metavar="FOLDER", help="which model writes the completions")
        parser.add_argument("--temperature", type=float, default=1.0, help="of its sampling (default: 1)")
    pairs.add_argument("--sharpness", type=float, default=4.0, help="of the annotator (default: 4)")
    pairs.add_argument("--flip", type=float, default=0.0, help="label noise: share of labels turned (default: 0)")
    rankings.add_argument("--candidates", type=int, default=4, help="completions a prompt (default: 4)")
    for parser, number, run in ((corpus, 8000, _corpus), (pairs, 4096, _pairs), (rankings, 2048, _rankings)):
        parser.add_argument("--split", choices=SPLITS, default="train", help="of the prompts (default: train)")
        parser.add_argument("--number", type=at_least_one, default=number, help="of records (default: %(default)s)")
        parser.add_argument("--seed", type=seed, default=0, help="(default: 0)")
        parser.add_argument("--output", required=True, type=output_file, metavar="FILE", help="a .jsonl file")
        parser.set_defaults(run=run, parser=parser)
    add_check(kinds)


def _add_sample(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "sample",
        help="read what a model writes, with its gold reward",
        description="Draw completions and print them with their gold reward.",
    )
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="(default: some of the split's)")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="(default: validation)")
    parser.add_argument("--number", type=at_least_one, default=5, help="of prompts (default: 5)")
    parser.add_argument("--best-of", type=int, default=1, metavar="N", help="keep the best of N by gold reward")
    parser.add_argument("--judge", action="store_true", help="show how each gold reward is reckoned")
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help="write the completions as .jsonl instead of printing them"
    )
    _add_sampling(parser)
    parser.set_defaults(run=_sample, parser=parser)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="gold and proxy reward, win rate, KL, diversity, perplexity, with intervals",
        description=(
            "Sample a model on prompts that it was not trained on and measure it. With a reference, the win rate is "
            "that of the gold reward against the reference's completions of the same prompts."
        ),
    )
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--reference", metavar="FOLDER", help="what it was trained from: for KL and win rate")
    parser.add_argument("--reward", metavar="FOLDER", help="a reward model: also what it gives the completions")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the prompts (default: test)")
    parser.add_argument("--number", type=at_least_one, default=1024, help="of completions (default: 1024)")
    parser.add_argument("--output", type=output_name, metavar="FILE", help="also write the numbers as .json")
    _add_sampling(parser, several=True)
    parser.set_defaults(run=_evaluate, parser=parser)


def _add_sampling(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    if several:
        parser.add_argument(
            "--temperature", type=float, nargs="+", default=[1.0], help="one or several, each evaluated (default: 1)"
        )
    else:
        parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: 1)")
    parser.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest tokens (default: all)")
    parser.add_argument("--seed", type=seed, default=0, help="(default: 0)")


def _corpus(options: argparse.Namespace) -> int:
    from dapedu import reviews
    from dapedu.data import save_records

    records = attempt(options, lambda: reviews.corpus(options.number, split=options.split, seed=options.seed))
    save_records(options.output, records)
    print(f"wrote {len(records):,} demonstrations to {options.output}")
    return 0


def _pairs(options: argparse.Namespace) -> int:
    from dapedu import reviews
    from dapedu.data import save_records

    model, tokenizer = load(options, options.model)
    records = attempt(
        options,
        lambda: reviews.preferences(
            model,
            tokenizer,
            options.number,
            split=options.split,
            temperature=options.temperature,
            sharpness=options.sharpness,
            flip=options.flip,
            seed=options.seed,
            progress=True,
        ),
    )
    save_records(options.output, records)
    dropped = options.number - len(records)
    print(f"wrote {len(records):,} preferences to {options.output}")
    print(f"{dropped:,} pairs were dropped: both completions the same, or one empty or without an end")
    return 0


def _rankings(options: argparse.Namespace) -> int:
    from dapedu import reviews
    from dapedu.data import save_records

    model, tokenizer = load(options, options.model)
    records = attempt(
        options,
        lambda: reviews.rankings(
            model,
            tokenizer,
            options.number,
            candidates=options.candidates,
            split=options.split,
            temperature=options.temperature,
            seed=options.seed,
            progress=True,
        ),
    )
    save_records(options.output, records)
    print(f"wrote {len(records):,} rankings to {options.output}")
    return 0


def _sample(options: argparse.Namespace) -> int:
    from dapedu import reviews
    from dapedu.data import save_records
    from dapedu.sampling import best_of_n

    model, tokenizer = load(options, options.model)
    prompts = options.prompt or attempt(
        options, lambda: reviews.draw_prompts(options.number, split=options.split, seed=options.seed)
    )
    samples = attempt(
        options,
        lambda: best_of_n(
            model,
            tokenizer,
            prompts,
            reviews.gold_rewards,
            n=options.best_of,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
        ),
    )
    rows = list(zip(samples.prompts, samples.completions, samples.finished, strict=True))
    if options.output:
        save_records(options.output, [{"prompt": p, "completion": c, "finished": f} for p, c, f in rows])
        print(f"wrote {len(rows):,} completions to {options.output}")
        return 0
    for prompt, completion, finished in rows:
        judgement = reviews.judge(prompt, completion, finished)
        print(f"{prompt} {completion}{'' if finished else ' …'}")
        print(f"{judgement}\n" if options.judge else f"  gold reward {judgement.reward:+.2f}\n")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from dapedu import reviews
    from dapedu.experiments.reviews import evaluate_reviewer

    model, tokenizer = load(options, options.model)
    reference = load(options, options.reference)[0] if options.reference else None
    head = None
    if options.reward:
        prompts = reviews.prompts(options.split)
        head = load_head(options, model, tokenizer, "reward", prompts=prompts, max_new_tokens=_LONGEST)
    results = {}
    for temperature in options.temperature:
        evaluate = partial(
            evaluate_reviewer,
            model,
            tokenizer,
            reference=reference,
            split=options.split,
            n=options.number,
            temperature=temperature,
            top_k=options.top_k,
            seed=options.seed,
        )
        results[f"{temperature:g}"] = attempt(options, evaluate)
        if head is not None:
            learned = _learned_reward(head, model, tokenizer, options, temperature)
            results[f"{temperature:g}"]["reward model"] = learned
        print(f"{options.number:,} completions of {options.split} prompts, temperature {temperature:g}")
        for name, value in results[f"{temperature:g}"].items():
            mean, *ends = value if isinstance(value, tuple) else (value,)
            interval = f"  [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
            print(f"  {name:22} {mean:8.3f}{interval}")
    if options.output:
        path = Path(options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf8")
    return 0


def _learned_reward(
    head: ScalarHead,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: argparse.Namespace,
    temperature: float,
) -> tuple[float, float, float]:
    """The mean of a reward model's rewards, of the completions of the evaluation: their seed draws them once more."""
    from dapedu import reviews
    from dapedu.evaluate import bootstrap_interval
    from dapedu.models import head_rewards
    from dapedu.sampling import sample

    prompts = reviews.draw_prompts(options.number, split=options.split, seed=options.seed)
    samples = sample(
        model,
        tokenizer,
        prompts,
        max_new_tokens=_LONGEST,
        temperature=temperature,
        top_k=options.top_k,
        seed=options.seed,
    )
    return bootstrap_interval(head_rewards(head, samples.sequences), groups=prompts)
