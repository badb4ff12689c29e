"""One raw row → one record: TRL's formats, dialogues of hh-rlhf, and what is wrong with which field."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np

from dapedu.data.sources import RowError

Record: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["demonstrations", "preferences", "rankings"]
Messages: TypeAlias = list[dict[str, str]]

_LARGEST = sys.float_info.max
_TURN = "\n\nAssistant:"
_WHOLE = "prompt beside whole conversations"
_TYPES = {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object"}


def canonical(row: Any, kind: Kind) -> tuple[Record, str]:
    """A row as a record of its kind.

    A record is all text or all conversations, lists of {"role", "content"}. Columns that it does not need are dropped.
    An implicit prompt is what chosen and rejected have in common: whole messages of conversations; of the dialogues of
    hh-rlhf, what ends with the last "\\n\\nAssistant:" in common; of other text, the common beginning. An explicit
    prompt with which both begin again is taken from them, unless it is one word, which completions may well begin with.

    Deviation: TRL cuts other text where the first characters differ, also in the middle of a word; here a completion
    begins with a whole word, and with the space before it.

    Args:
        row: what a source gave.
        kind: demonstrations, with `prompt` and `completion`; preferences, with `prompt`, `chosen`, `rejected` and
            perhaps `target`; or rankings, with `prompt`, `completions` and `rewards`.

    Returns:
        The record, and the name of the format that it was in.

    Raises:
        RowError: the row is no such record.
    """
    if not isinstance(row, dict):
        raise RowError(f"{_type_of(row)}, expected an object")
    return _READERS[kind](row)


def guess_kind(row: Any) -> Kind | None:
    """The kind of record that a row's fields suggest.

    Args:
        row: what a source gave.

    Returns:
        The kind, or None if no field suggests one.
    """
    if not isinstance(row, dict):
        return None
    if "chosen" in row or "rejected" in row:
        return "preferences"
    if "completions" in row or "rewards" in row:
        return "rankings"
    return "demonstrations" if "completion" in row or "messages" in row else None


# ---- the kinds ----


def _demonstration(row: Record) -> tuple[Record, str]:
    if "completion" not in row and "messages" in row:
        messages = _value(row, "messages")
        if isinstance(messages, str):
            raise RowError("`messages` is text", ', expected a list of {"role", "content"}')
        _require_assistant("messages", messages)
        if len(messages) < 2:
            raise RowError("`messages` has no prompt", ": there is one message only")
        return {"prompt": _prompt_of(messages[:-1]), "completion": messages[-1:]}, "messages"
    if "completion" not in row and "chosen" in row and "rejected" in row:
        record, form = _preference(row)
        return {"prompt": record["prompt"], "completion": record["chosen"]}, f"the chosen side of pairs: {form}"
    completion, prompt = _value(row, "completion"), _value(row, "prompt")
    _require_same_form("completion", completion, prompt)
    _require_assistant("completion", completion)
    return {"prompt": _prompt_of(prompt), "completion": completion}, f"explicit prompt, {_form(prompt)}"


def _preference(row: Record) -> tuple[Record, str]:
    chosen, rejected = _value(row, "chosen"), _value(row, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("`chosen` and `rejected` differ in form", ": one is text, the other a conversation")
    if chosen == rejected:
        raise RowError("`chosen` and `rejected` are the same")
    prompt = _value(row, "prompt") if "prompt" in row else None
    if prompt is not None and (isinstance(chosen, str) or not isinstance(prompt, str)):
        _require_same_form("chosen", chosen, prompt)
        form = f"explicit prompt, {_form(prompt)}"
        if _goes_on(prompt, chosen) and _goes_on(prompt, rejected):
            form = "prompt beside whole texts" if isinstance(prompt, str) else _WHOLE
            chosen, rejected = _after(prompt, chosen, "chosen"), _after(prompt, rejected, "rejected")
    else:
        cut, form = _common_messages(chosen, rejected) if isinstance(chosen, list) else _common_text(chosen, rejected)
        if prompt is not None:
            form = _WHOLE
        prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    record = {"prompt": _prompt_of(prompt), "chosen": chosen, "rejected": rejected}
    if "target" in row:
        target = _value(row, "target")
        _require_same_form("target", target, prompt)
        was_whole = len(chosen) < len(row["chosen"])
        record["target"] = _after(prompt, target, "target") if was_whole and _goes_on(prompt, target) else target
    for field in list(record)[1:]:
        _require_assistant(field, record[field])
    return record, form


def _ranking(row: Record) -> tuple[Record, str]:
    prompt = _value(row, "prompt")
    for field in ("completions", "rewards"):
        if field not in row:
            raise RowError(f"no `{field}`", f"; there are {_names(row)}")
    texts, rewards = row["completions"], row["rewards"]
    if isinstance(rewards, list):
        rewards = [reward.item() if isinstance(reward, np.generic) else reward for reward in rewards]
    if not isinstance(texts, list) or not all(isinstance(text, str | list) for text in texts):
        raise RowError("`completions` is not a list of texts", ", or of lists of messages")
    # Not math.isfinite, which raises on a whole number of 400 digits.
    if not isinstance(rewards, list) or not all(type(r) in (int, float) and abs(r) <= _LARGEST for r in rewards):
        raise RowError("`rewards` is not a list of finite numbers")
    if len(texts) < 2 or len(rewards) != len(texts):
        counts = f": there are {len(texts)} and {len(rewards)}"
        raise RowError("`completions` and `rewards` are not k ≥ 2 of each", counts)
    completions = [_checked(text, f"completions[{number}]", "completions") for number, text in enumerate(texts)]
    for completion in completions:
        _require_same_form("completions", completion, prompt)
        _require_assistant("completions", completion)
    if all(completion == completions[0] for completion in completions):
        raise RowError("`completions` are all the same")
    record = {"prompt": _prompt_of(prompt), "completions": completions, "rewards": rewards}
    return record, f"explicit prompt, {_form(prompt)}"


_READERS: dict[str, Callable[[Record], tuple[Record, str]]] = {
    "demonstrations": _demonstration,
    "preferences": _preference,
    "rankings": _ranking,
}

# ---- prompts that stand in the completions ----


def _goes_on(prompt: str | Messages, whole: str | Messages) -> bool:
    """Whether a text or conversation has its prompt at its beginning."""
    n = len(prompt)
    if whole[:n] != prompt:
        return False
    if isinstance(prompt, list) or isinstance(whole, list):
        return True  # of one form, as was seen before
    return len(prompt.split()) > 1 and not (_in_word(prompt[-1]) and _in_word(whole[n : n + 1]))


def _after(prompt: str | Messages, whole: str | Messages, field: str) -> str | Messages:
    rest = whole[len(prompt) :]
    if not (rest.strip() if isinstance(rest, str) else rest):
        raise RowError(f"`{field}` is empty", ": only the prompt stands there")
    return rest


def _common_text(chosen: str, rejected: str) -> tuple[int, str]:
    n = _common_length(chosen, rejected)
    if chosen.startswith("\n\nHuman:") or rejected.startswith("\n\nHuman:"):
        start = chosen.rfind(_TURN, 0, n)
        if start < 0:
            raise RowError("`chosen` and `rejected` have no turn in common", f": no {_TURN!r} in their beginning")
        return start + len(_TURN), "implicit prompt, hh-rlhf dialogues"
    shorter, longer = sorted((chosen, rejected), key=len)
    # A text that the other one goes on from keeps its last word: a completion is never empty.
    cut = n - 1 if n == len(shorter) else n
    while cut > 0 and _in_word(longer[cut - 1]) and (_in_word(longer[cut]) or _in_word(shorter[cut])):
        cut -= 1
    cut = len(longer[: max(cut, 0)].rstrip())
    if not cut:
        raise RowError("no `prompt`", ", and `chosen` and `rejected` have no beginning in common")
    return cut, "implicit prompt, text"


def _common_length(one: str, other: str) -> int:
    """By bisection: comparing slices is a thousand times faster than comparing characters in a loop."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _in_word(character: str) -> bool:
    """Letters, digits, marks and what joins them; not the scripts of China and Japan, which have no spaces."""
    if not character or "\u2e80" <= character <= "\u9fff":
        return False
    return unicodedata.category(character)[0] in "LNM" or character in "'’-_"


def _common_messages(chosen: Messages, rejected: Messages) -> tuple[int, str]:
    longest = min(len(chosen), len(rejected)) - 1
    cut = next((n for n in range(longest) if chosen[n] != rejected[n]), longest)
    if not cut:
        raise RowError("no `prompt`", ", and `chosen` and `rejected` have no first message in common")
    return cut, "implicit prompt, conversations"


# ---- fields ----


def _value(row: Record, field: str) -> Any:
    if field not in row:
        raise RowError(f"no `{field}`", f"; there are {_names(row)}")
    return _checked(row[field], field, field)


def _checked(value: Any, name: str, field: str) -> str | Messages:
    if isinstance(value, str):
        _require_unicode(value, name, field)
        if not value.strip():
            raise RowError(f"`{field}` is empty" if name == field else f"one of `{field}` is empty", _at(name, field))
        return value
    if not isinstance(value, list):
        raise RowError(f"`{field}` is {_type_of(value)}", ", expected text or a list of messages")
    if not value:
        raise RowError(f"`{field}` is an empty conversation", _at(name, field))
    return [_message(message, f"{name}[{number}]", field) for number, message in enumerate(value)]


def _message(message: Any, name: str, field: str) -> dict[str, str]:
    expected = ', expected {"role": text, "content": text}'
    if not isinstance(message, dict):
        raise RowError(f"`{field}` is no list of messages", f": {name} is {_type_of(message)}{expected}")
    for key in ("role", "content"):
        if key not in message:
            raise RowError(f"`{field}` is no list of messages", f": {name} has no `{key}`{expected}")
        if not isinstance(message[key], str):
            what = _type_of(message[key])
            raise RowError(f"`{field}` is no list of messages", f": `{key}` of {name} is {what}{expected}")
        _require_unicode(message[key], name, field)
    return {"role": message["role"], "content": message["content"]}


def _require_unicode(text: str, name: str, field: str) -> None:
    """JSON can hold half a surrogate pair, where something cut a text in the middle of an emoji; tokenizers cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        detail = f"{_at(name, field)}, which is no character"
        raise RowError(f"`{field}` has half a surrogate pair in it", detail) from None


def _require_assistant(field: str, completion: str | Messages) -> None:
    last = completion if isinstance(completion, str) else completion[-1]["content"]
    if not isinstance(completion, str) and completion[-1]["role"] != "assistant":
        raise RowError(f"`{field}` does not end with the assistant's message")
    if not last.strip():
        raise RowError(f"`{field}` is empty")


def _require_same_form(field: str, value: str | Messages, prompt: str | Messages) -> None:
    if isinstance(value, str) != isinstance(prompt, str):
        raise RowError(f"`{field}` and `prompt` differ in form", f": {_form(value)} and {_form(prompt)}")


def _prompt_of(prompt: str | Messages) -> str | Messages:
    if not (prompt.strip() if isinstance(prompt, str) else any(message["content"].strip() for message in prompt)):
        raise RowError("`prompt` is empty")
    return prompt


def _form(value: str | Messages) -> str:
    return "text" if isinstance(value, str) else "conversations"


def _at(name: str, field: str) -> str:
    return "" if name == field else f" ({name})"


def _type_of(value: Any) -> str:
    if type(value) in (int, float):
        return "a number"
    return _TYPES.get(type(value), f"a {type(value).__name__}")


def _names(row: Record) -> str:
    shown = [repr(name) if len(str(name)) <= 40 else repr(str(name)[:39] + "…") for name in list(row)[:12]]
    return ", ".join(shown + ["…"] * (len(row) > 12)) or "no fields"
