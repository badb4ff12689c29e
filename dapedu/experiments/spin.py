"""SPIN on the reviews, iterations 0 to 3, against as many steps of imitation and of DPO; from two starts.

The paper's λ is `beta` here, as everywhere in the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dapedu import reviews
from dapedu.data import Record, encode
from dapedu.evaluate import measure_policy
from dapedu.experiments.laboratories import draw_settings
from dapedu.experiments.reviews import SEEDS, by_metric, laboratory
from dapedu.experiments.rlhf import tuned_settings
from dapedu.experiments.units import run_units, scratch
from dapedu.models import load_model, save_model, score
from dapedu.sampling import Samples, sample
from dapedu.train import SFT_SETTINGS, Settings, train_preference, train_sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STARTS = {"under-trained": 250, "converged": SFT_SETTINGS.steps}  # steps of supervised fine-tuning
VARIANTS: dict[str, dict[str, Any]] = {
    "no old data": {"previous": False},
    "greedy opponents": {"temperature": 0.0},
}
_LR = {"lr": (3e-5, 3e-3)}
SPACES: dict[str, dict[str, Any]] = {"SPIN": _LR | {"beta": (0.05, 5.0)}, "more SFT": _LR}
_TUNED_ON = 5  # a laboratory that no result is reported from
_CORPUS = 8_000  # reviews that a laboratory has: what SFT was trained on, and all that SPIN gets
_PEOPLE = 1_000  # reviews whose log-probability is taken
_APART = 1_000_003  # seeds of two iterations


def reviews_spin(
    *,
    seeds: Sequence[int] = SEEDS,
    starts: Sequence[str] = tuple(STARTS),
    trials: int = 8,
    iterations: int = 4,
    steps: int = 48,
    batch_size: int = 32,
    betas: Sequence[float] = (0.1, 0.3, 1.0, 5.0),
    variants: Sequence[str] = tuple(VARIANTS),
    pairs: int = 4_096,
    beta: float = 0.5,
) -> dict[str, Any]:
    """SPIN, iterations 0 to 3, against as many steps of imitation and of DPO, from two starts.

    Of SPIN and of imitation eight random settings are tried for each start, and chosen by the gold reward on validation
    prompts, on a laboratory of their own. DPO has those of `reviews_tuning`, at β = .5.
    """
    run_units(laboratory, [{"seed": seed} for seed in (*seeds, _TUNED_ON)])
    run_units(early_start, [{"seed": seed} for seed in (*seeds, _TUNED_ON)])
    plan = {"iterations": iterations, "steps": steps, "batch_size": batch_size, "warmup": min(10, steps)}
    results: dict[str, Any] = {}
    for start in starts:
        tuning = {method: _tried(start, method, plan, trials) for method in SPACES}
        best = {method: max(rows, key=lambda row: row["gold"])["settings"] for method, rows in tuning.items()}
        over = partial(_over, seeds, start)
        spin = plan | best["SPIN"]
        dpo = tuned_settings()["DPO"] | {"pairs": pairs, "beta": beta, "steps": steps * iterations}
        results[start] = {
            "start": by_metric(run_units(start_metrics, [{"seed": seed, "start": start} for seed in seeds])),
            "tuning": tuning,
            "settings": best,
            "SPIN": over("SPIN", spin, every=True),
            "more SFT": over("more SFT", plan | best["more SFT"], every=True),
            "DPO": over("DPO", dpo),
            "lambda": {f"{value:g}": over("SPIN", spin | {"beta": value}) for value in betas},
            "variants": {name: over("SPIN", spin | VARIANTS[name]) for name in variants},
        }
    return results


def early_start(*, seed: int) -> dict[str, float]:
    """Train the under-trained SFT model of a laboratory, and keep it.

    Args:
        seed: of the laboratory, whose reviews it is trained on.

    Returns:
        The loss at the end.
    """
    tokenizer = reviews.make_tokenizer()
    model = reviews.make_model(tokenizer, seed=seed)
    settings = replace(SFT_SETTINGS, steps=STARTS["under-trained"], seed=seed)
    log = train_sft(model, tokenizer, reviews.corpus(_CORPUS, seed=seed), settings=settings, progress=False)
    save_model(model, tokenizer, _folder(seed, "under-trained"), card=f"Laboratory {seed}, {settings.steps} steps.\n")
    return {"loss": log[-1]["loss"]}


def start_metrics(*, seed: int, start: str) -> dict[str, float]:
    """What is measured of a policy, of the model that it starts from.

    Args:
        seed: of the laboratory.
        start: a key of `STARTS`.

    Returns:
        As an entry of `play_unit`, and `human gold`, that of people's reviews.
    """
    model, tokenizer = load_model(_folder(seed, start))
    people = reviews.corpus(_PEOPLE, split="test", seed=seed)
    gold = [reviews.gold_reward(record["prompt"], record["completion"]) for record in people]
    return _measured(model, tokenizer, model, seed=seed) | {"human gold": round(sum(gold) / len(gold), 4)}


def play_unit(
    *, seed: int, start: str, method: str, settings: Mapping[str, Any], split: str = "test", every: bool = False
) -> dict[str, list[float]]:
    """Train a start of a laboratory by SPIN, by imitation or by DPO, and measure it.

    Args:
        seed: of the laboratory and of the run.
        start: a key of `STARTS`.
        method: "SPIN", "more SFT" or "DPO".
        settings: `lr`, `steps` of an iteration, and what `self_play` or the preferences need.
        split: of the prompts and the reviews that it is measured on.
        every: after every iteration, not only after the last.

    Returns:
        Lists over the iterations measured, of gold reward, share of texts with a `fault`, KL to the start, length;
        `greedy gold`, the gold reward of the likeliest completions; −log π of people's reviews in nats a review,
        held-out (`people`) and of the training data (`trained on`).
    """
    reference, tokenizer = load_model(_folder(seed, start))
    policy, _ = load_model(_folder(seed, start))
    values, rows = dict(settings), []
    measured = partial(_measured, policy, tokenizer, reference, seed=seed, split=split)
    plan = Settings(
        **{name: values.pop(name) for name in ("lr", "steps", "batch_size", "warmup") if name in values},
        seed=seed,
        kl_samples=0,
    )
    if method == "DPO":
        records = reviews.preferences(reference, tokenizer, values["pairs"], seed=seed)
        strengths = {"beta": values["beta"]}
        train_preference(policy, tokenizer, records, method="dpo", strengths=strengths, settings=plan, progress=False)
        return by_metric([measured()])

    def look() -> None:
        rows.append(measured())

    total = values.pop("iterations")
    self_play(
        policy,
        tokenizer,
        reviews.corpus(_CORPUS, seed=seed),
        method="spin" if method == "SPIN" else "sft",
        settings=plan,
        iterations=total,
        after=look if every else None,
        **values,
    )
    return by_metric(rows or [measured()])


def self_play(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Record],
    *,
    settings: Settings,
    method: str = "spin",
    beta: float = 0.1,
    iterations: int = 4,
    previous: bool = True,
    temperature: float = 1.0,
    after: Callable[[], object] | None = None,
) -> None:
    """SPIN: in each iteration people's texts against the policy's own, and the policy that wrote them is the reference.

    Args:
        policy: the SFT model, trained in place.
        tokenizer: the policy's.
        demonstrations: people's texts; each iteration takes as many as its steps read, from where the last one stopped.
        settings: of each iteration.
        method: "spin"; or "sft", which imitates the same texts in as many steps and nothing else.
        beta: the paper's λ.
        iterations: how many.
        previous: from the second on, half of the pairs are those of the iteration before.
        temperature: at which the opponent writes; 0 is greedy.
        after: called at the end of each iteration.

    Raises:
        ValueError: as `train_preference`.

    Deviation: the paper takes the same 50,000 prompts in every iteration, and its steps double where the pairs of the
    iteration before come in; here no text is read in two iterations for its own sake, and the steps stay the same.

    Source: arXiv:2401.01335, Algorithm 1 and §6.1.
    """
    share = min(settings.steps * settings.batch_size, len(demonstrations) // iterations)
    before: list[Record] = []
    for number in range(iterations):
        seed = settings.seed + _APART * number
        records = list(demonstrations[number * share : (number + 1) * share])
        if method == "spin":
            records = against_itself(policy, tokenizer, records, temperature=temperature, seed=seed)
        train_preference(
            policy,
            tokenizer,
            records + before,
            method=method,
            strengths={"beta": beta} if method == "spin" else None,
            settings=replace(settings, seed=seed),
            progress=False,
        )
        before = records if previous and method == "spin" else []
        if after is not None:
            after()


def against_itself(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Record],
    *,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Record]:
    """People's texts as chosen, the policy's own for the same prompts as rejected.

    Args:
        policy, tokenizer: what writes.
        demonstrations: people's texts.
        temperature, seed: as `sample`.

    Returns:
        Preferences, of the prompts for which the policy writes a text with an end.

    Source: arXiv:2401.01335, Algorithm 1.
    """
    asked = [record["prompt"] for record in demonstrations]
    own = sample(policy, tokenizer, asked, temperature=temperature, seed=seed)
    return [
        {"prompt": record["prompt"], "chosen": record["completion"], "rejected": text}
        for record, text, ended in zip(demonstrations, own.completions, own.finished, strict=True)
        if text and ended
    ]


def _tried(start: str, method: str, plan: Mapping[str, Any], trials: int) -> list[dict[str, Any]]:
    """Random settings of a method, each with the gold reward that it reaches on validation prompts."""
    drawn = draw_settings(method, trials, seed=0, spaces=SPACES)
    common = {"seed": _TUNED_ON, "start": start, "method": method, "split": "validation"}
    rows = run_units(play_unit, [{**common, "settings": {**plan, **settings}} for settings in drawn])
    return [
        {"settings": settings} | {name: values[-1] for name, values in row.items()}
        for settings, row in zip(drawn, rows, strict=True)
    ]


def _over(
    seeds: Sequence[int], start: str, method: str, settings: Mapping[str, Any], every: bool = False
) -> dict[str, list[list[float]]]:
    common = {"start": start, "method": method, "settings": dict(settings), "every": every}
    return by_metric(run_units(play_unit, [{"seed": seed, **common} for seed in seeds]))


def _folder(seed: int, start: str) -> Any:
    return scratch() / (f"sft-{seed}" if start == "converged" else f"sft-{seed}-early")


def _measured(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel,
    *,
    seed: int,
    split: str = "test",
) -> dict[str, float]:
    asked = reviews.draw_prompts(1_024, split=split, seed=seed)
    _, values = measure_policy(
        policy,
        tokenizer,
        asked,
        rewards={"gold": reviews.gold_rewards, "fault": _faulty},
        reference=reference,
        seed=seed,
    )
    found = {name: float(values[name].mean()) for name in ("gold", "fault", "kl", "length")}
    likeliest = sample(policy, tokenizer, reviews.prompts(split), temperature=0.0)
    found["greedy gold"] = float(reviews.gold_rewards(likeliest).mean())
    for name, records in (
        ("people", reviews.corpus(_PEOPLE, split=split, seed=seed)),
        ("trained on", reviews.corpus(_CORPUS, seed=seed)[:_PEOPLE]),
    ):
        texts = encode([r["prompt"] for r in records], [r["completion"] for r in records], tokenizer)
        found[name] = -float(score(policy, texts).double().mean())
    return {name: round(value, 4) for name, value in found.items()}


def _faulty(samples: Samples) -> list[float]:
    rows = zip(samples.prompts, samples.completions, samples.finished, strict=True)
    return [float(any(reviews.judge(*row).faults.values())) for row in rows]
