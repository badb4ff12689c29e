"""Conversations as text, by the chat template of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dapedu.data.formats import Messages, Record
from dapedu.data.records import Records
from dapedu.data.sources import DataError, RowError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def apply_chat_template(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> Records:
    """Conversations rendered to text; text stays as it is.

    A prompt ends with the beginning of the assistant's turn. A completion is what the whole conversation has after it,
    the end of the turn included.

    Args:
        records: as the loaders return them.
        tokenizer: its `chat_template` renders.

    Returns:
        Records of text, with the positions of the given ones.

    Raises:
        DataError: there is a conversation and no template, the template refuses it, or the text of a prompt is not the
            beginning of the text of its conversation.
    """
    records = records if isinstance(records, Records) else Records(records)
    rendered = []
    for index, record in enumerate(records):
        try:
            rendered.append(render(record, tokenizer))
        except RowError as error:
            raise DataError(f"{records.where(index)}: {error}") from None
    return Records(rendered, source=records.source, unit=records.unit, positions=records.positions)


def render(record: Record, tokenizer: PreTrainedTokenizerBase) -> Record:
    """One record as text.

    Args:
        record: of text, which is returned as it is, or of conversations.
        tokenizer: its `chat_template` renders.

    Returns:
        A record of text.

    Raises:
        RowError: there is no template, or it does not render this conversation.
    """
    messages = record["prompt"]
    if isinstance(messages, str):
        return record
    if not tokenizer.chat_template:
        raise RowError("the tokenizer has no chat template", "; set tokenizer.chat_template, or give texts")
    prompt = _text(messages, tokenizer, begin=True)

    def completion(field: str, turns: Messages) -> str:
        whole = _text(messages + turns, tokenizer, begin=False)
        if not whole.startswith(prompt):
            raise RowError(
                "the chat template does not go on from the prompt",
                f": the prompt's text is not the beginning of the text with `{field}`; mend tokenizer.chat_template",
            )
        if not whole[len(prompt) :].strip():
            raise RowError(f"the chat template leaves nothing of `{field}`", "; mend tokenizer.chat_template")
        return whole[len(prompt) :]

    text: Record = {"prompt": prompt}
    for field, value in record.items():
        if field == "rewards":
            text[field] = value
        elif field == "completions":
            text[field] = [completion(field, turns) for turns in value]
        elif field != "prompt":
            text[field] = completion(field, value)
    return text


def _text(messages: Messages, tokenizer: PreTrainedTokenizerBase, *, begin: bool) -> str:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin)
    # A template is a program of its own, and raises what its expressions raise.
    except (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise RowError("the chat template refuses the conversation", f" ({one_line(error)})") from None
    return str(text)
