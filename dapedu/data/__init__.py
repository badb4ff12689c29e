"""Text records in, token batches out: `files` reads and checks records, `tokens` makes batches of them."""

from dapedu.data.files import (
    DataError,
    Record,
    load_demonstrations,
    load_preferences,
    load_rankings,
    save_records,
)
from dapedu.data.tokens import Sequences, collate, encode

__all__ = [
    "DataError",
    "Record",
    "Sequences",
    "collate",
    "encode",
    "load_demonstrations",
    "load_preferences",
    "load_rankings",
    "save_records",
]
