"""`dapedu rounds`: a model trained on its own completions without a policy gradient: sample, judge, rank, train."""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapedu.cli.inputs import A_MODEL, at_least_one, attempt, load, load_head, refuse, refuse_output
from dapedu.cli.judged import JUDGES, add_judged, check_judge, judged_reward, prompt_records, prompts_of
from dapedu.cli.training import add_strengths, add_training, settings_of, strengths_of
from dapedu.data import encode_prompts
from dapedu.models import save_model
from dapedu.sampling import Samples, sample
from dapedu.train import METHODS, DivergedError, RunError, Settings, best_and_worst, plan, two_by_two
from dapedu.train.checkpoints import Run, require_usable
from dapedu.train.loop import fingerprint, try_loss
from dapedu.train.processes import this_process
from dapedu.train.rounds import Round, minus_kl, train_in_rounds

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_RANKS = {"best-and-worst": best_and_worst, "two-by-two": two_by_two}
_SAMPLING = ("max_new_tokens", "temperature", "top_k")
_COLUMNS = ("round", "completions", "records", "mean reward", "mean of the best")
_TRIED, _TIMED = 8, 64  # completions that the reward is tried on before a run; prompts of a dry run


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add this module's command.

    Args:
        commands: the parser's.
    """
    parser = commands.add_parser(
        "rounds",
        help="train a language model in rounds on its own completions, ranked by a reward",
        description=(
            "In each round the model completes prompts, the reward judges the candidates of each, and the model learns "
            "from the best (sft: rejection sampling), pairs or the whole ranking, as the method needs. The settings "
            "are of each round's training. A row of the table is about a round's candidates before anything was learnt "
            "from them; the KL term, if there is one, is part of the reward."
        ),
    )
    # SPIN's pairs are a human's text against an own one, which no reward ranks.
    parser.add_argument("--method", required=True, choices=[name for name in METHODS if name != "spin"])
    parser.add_argument("--model", required=True, metavar="MODEL", help=f"the SFT model: {A_MODEL}")
    add_judged(parser)
    parser.add_argument(
        "--beta",
        type=float,
        help="β: the KL weight. dpo has it in its loss, as in `dapedu train` (default: the paper's); with the other "
        "methods β log π/π_ref is subtracted from the reward, π_ref being the model as it is loaded (default: 0)",
    )
    add_strengths(parser, without={"beta"})
    parser.add_argument("--rounds", type=at_least_one, default=3, help="(default: 3)")
    parser.add_argument("--candidates", type=at_least_one, default=4, help="completions a prompt (default: 4)")
    text = "which candidates make pairs; two-by-two: the first and second, the third and fourth, … as they were drawn"
    parser.add_argument("--rank", choices=list(_RANKS), help=f"{text} (default: best-and-worst)")
    text = "in the order of the file, none twice (default: all prompts, divided evenly)"
    parser.add_argument("--prompts-per-round", type=at_least_one, metavar="N", help=text)
    parser.add_argument("--max-new-tokens", type=at_least_one, default=64, help="of a candidate (default: 64)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the sampling (default: 1)")
    parser.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest tokens (default: all)")
    add_training(parser, Settings(), later={}, without={"evaluate_every", "kl_samples"})  # of held-out records
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace) -> int:
    settings, strengths, beta = _checked_words(options)
    records = attempt(options, lambda: prompt_records(options))
    model, tokenizer = load(options, options.model)
    prompts = attempt(options, lambda: prompts_of(records, tokenizer))
    needed = options.rounds * (options.prompts_per_round or max(1, len(prompts) // options.rounds))
    if len(prompts) < needed:
        refuse(options, f"{options.prompts}: {len(prompts):,} different prompts, expected at least {needed:,}")
    prompts, longest = prompts[:needed], options.max_new_tokens
    model.float().to(this_process().device)  # type: ignore[arg-type]  # as it will be trained
    parts: dict[str, nn.Module] = {"policy": model}
    head = None
    if options.reward not in JUDGES:
        head = load_head(options, model, tokenizer, "reward", prompts=prompts, max_new_tokens=longest)
        parts["reward model"] = head
    # In groups as large as a part of a batch: what fits in memory with a gradient fits without.
    reward = judged_reward(options, head, prompts, at_once=math.ceil(settings.batch_size / settings.parts))
    if beta:
        parts["reference"] = reference = copy.deepcopy(model).requires_grad_(False)
        reward = minus_kl(reward, model, reference, beta=beta)
    given: dict[str, Any] = {name: getattr(options, name) for name in ("method", "candidates", *_SAMPLING)}
    given |= {"tokenizer": tokenizer, "prompts": prompts, "reward": reward, "strengths": strengths}
    given |= {"settings": settings, "rank": _RANKS.get(options.rank)}
    asked = {
        "method": options.method,
        "strengths": strengths | ({"beta": beta} if beta else {}),
        "settings": asdict(settings),
        "rounds": {name: getattr(options, name) for name in ("rounds", "candidates", "rank", *_SAMPLING)},
        "data": sha256(json.dumps(prompts).encode()).hexdigest()[:16],
        "reward": attempt(options, lambda: _try_reward(model, given)),
        "start": fingerprint(model),
    }
    if options.dry_run:
        print(attempt(options, lambda: _foreseen(model, parts, options.rounds, given)))
        return 0
    try:
        print(f"wrote {_train(options, model, given, asked)}, the run of each round beside it")
    except (DivergedError, ValueError) as problem:  # no record to learn from, perhaps, which only a round can tell
        print(f"dapedu: {problem}", file=sys.stderr)
        return 1
    except RunError as problem:
        refuse(options, problem)
    return 0


def _checked_words(options: argparse.Namespace) -> tuple[Settings, dict[str, float], float]:
    """Settings, strengths and the reward's β; what can be seen before a file is read is refused."""
    method, in_twos = METHODS[options.method], options.rank == "two-by-two"
    beta = 0.0 if "beta" in method.strengths else options.beta or 0.0
    strengths = strengths_of(options, without={"beta"} - set(method.strengths))
    if not 0 <= beta < math.inf:
        refuse(options, f"--beta is {beta:g}, expected a finite number ≥ 0")
    if options.rank and method.records != "preferences":
        refuse(options, f"--rank is about pairs, but {options.method} learns from {method.records}")
    if options.candidates < 2 or (in_twos and options.candidates % 2):
        expected = "an even number for --rank two-by-two" if in_twos else "at least 2"
        refuse(options, f"--candidates is {options.candidates}, expected {expected}")
    check_judge(options)
    settings = settings_of(options)
    attempt(options, lambda: try_loss(method, strengths, 2))
    if settings.max_length is not None and settings.max_length < (least := options.max_new_tokens + 2):
        refuse(options, f"--max-length is {settings.max_length}, expected at least {least}: --max-new-tokens and 2")
    if (number := attempt(options, this_process).num_processes) > 1:
        refuse(options, f"{number} processes were started, expected one")
    refuse_output(options, "model", "reward")
    return settings, strengths, beta


def _try_reward(model: PreTrainedModel, given: Mapping[str, Any]) -> list[float]:
    """The rewards of a few completions: what is wrong with prompts or sampling shows before anything is started."""
    prompts, tokenizer = given["prompts"], given["tokenizer"]
    longest = sorted(zip(map(len, encode_prompts(prompts, tokenizer)), prompts, strict=True))[-_TRIED:]
    drawn = {"seed": given["settings"].seed} | {name: given[name] for name in _SAMPLING}
    samples = sample(model, tokenizer, [prompt for _, prompt in longest], **drawn)
    return [round(float(value), 3) for value in given["reward"](samples)]


def _train(
    options: argparse.Namespace, model: PreTrainedModel, given: Mapping[str, Any], asked: dict[str, Any]
) -> Path:
    """Run the rounds, a row of the table each, and save what comes out; where it is."""
    from tqdm.auto import tqdm

    means: list[str] = []

    def show(one: Round) -> None:
        means.append(f"{one.rewards.mean():.4f}")
        row = (f"{len(means)}", f"{len(one.samples):,}", f"{len(one.records):,}", means[-1])
        cells = zip(_COLUMNS, (*row, f"{one.rewards.amax(dim=1).mean():.4f}"), strict=True)
        tqdm.write("  ".join(cell.rjust(len(name)) for name, cell in cells))  # above the bar
        sys.stdout.flush()

    for folder in sorted(Path(options.output).glob("round-*")):  # a run that was stopped has them, and no model yet
        require_usable(folder, resume=options.resume)
    run = Run(options.output, asked=asked, resume=options.resume)
    print("  ".join(_COLUMNS), flush=True)
    where = {"output": run.folder, "resume": options.resume}
    train_in_rounds(model, **given, **where, rounds=options.rounds, after=show, progress=not options.quiet)
    last = run.folder / f"round-{options.rounds}" / "model" / "README.md"
    judged = f"{options.candidates} completions a prompt, judged by {options.reward}, times {options.reward_scale:g}"
    card = f"\n- Rounds: {options.rounds}, of which the last is above; {judged}: mean rewards {', '.join(means)}\n"
    save_model(model, given["tokenizer"], run.model, card=last.read_text(encoding="utf8") + card)
    return run.model


def _foreseen(model: PreTrainedModel, parts: Mapping[str, nn.Module], rounds: int, given: Mapping[str, Any]) -> str:
    """What a run would take, from one round of a copy on a few prompts, with a single step, and a few timed steps."""
    judged: list[float] = []

    def reward(samples: Samples) -> Tensor | Sequence[float]:
        rewards = given["reward"](samples)
        judged.append(time.perf_counter())
        return rewards

    prompts, settings, a_round = given["prompts"], given["settings"], len(given["prompts"]) // rounds
    few = prompts[: min(_TIMED, a_round)]
    changed = {"prompts": few, "reward": reward, "settings": replace(settings, steps=1)}
    start = time.perf_counter()
    (trial,) = train_in_rounds(copy.deepcopy(model), **{**given, **changed}, progress=False)
    training = plan(model, given["tokenizer"], trial.records, method=given["method"], settings=settings)
    seconds = (judged[0] - start) / len(few) * len(prompts) + rounds * training.seconds
    memory = 12 * training.trained + sum(p.numel() * p.element_size() for m in parts.values() for p in m.parameters())
    return "\n".join(
        (
            f"prompts      {len(prompts):,}: {rounds} rounds of {a_round:,}, {given['candidates']} candidates each",
            f"records      about {a_round * len(trial.records) // len(few):,} a round, from {len(few):,} prompts tried",
            f"steps        {settings.steps:,} a round, of {settings.batch_size:,} records",
            f"models       {len(parts)}: {', '.join(parts)}",
            f"memory       {memory / 2**20:,.0f} MiB for weights, gradients and AdamW; activations besides",
            f"time         about {seconds:,.0f} s on {this_process().device.type}",
        )
    )
