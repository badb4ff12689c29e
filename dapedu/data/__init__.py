"""Records in, token batches out.

`sources` reads rows, `formats` makes records of them, `records` loads and saves, `templates` renders conversations,
`check` reports on a whole source, `tokens` makes batches.
"""

from dapedu.data.check import Lengths, Report, check_records
from dapedu.data.formats import Record
from dapedu.data.records import Records, load_demonstrations, load_preferences, load_rankings, save_records
from dapedu.data.sources import DataError
from dapedu.data.templates import apply_chat_template
from dapedu.data.tokens import Sequences, beginning_of, collate, encode, encode_prompts

__all__ = [
    "DataError",
    "Lengths",
    "Record",
    "Records",
    "Report",
    "Sequences",
    "apply_chat_template",
    "beginning_of",
    "check_records",
    "collate",
    "encode",
    "encode_prompts",
    "load_demonstrations",
    "load_preferences",
    "load_rankings",
    "save_records",
]
