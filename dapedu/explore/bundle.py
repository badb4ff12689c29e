"""One module out of two: an explorer's own, and the page code that all of them share."""

import re
from importlib.resources import files

_SHARED_IMPORT = re.compile(r'^import \{[^}]*\} from "\./page\.mjs";\n', re.MULTILINE)
_ANY_IMPORT = re.compile(r"^\s*import\b|\bimport\(", re.MULTILINE)


def bundle(name: str) -> str:
    """An explorer's JavaScript as one module without imports: anywidget loads it from a Blob, which has no folder.

    Args:
        name: of the module in this folder, without `.mjs`; it imports `./page.mjs` in one statement, and nothing else.

    Returns:
        `page.mjs`, its exports made private, and then the module.

    Raises:
        ValueError: the module does not import `./page.mjs` once, or something else is imported.
    """
    folder = files("dapedu.explore")
    shared, own = (folder.joinpath(f"{part}.mjs").read_text(encoding="utf8") for part in ("page", name))
    own, found = _SHARED_IMPORT.subn("", own)
    if found != 1:
        raise ValueError(f"bundle: {name}.mjs imports ./page.mjs {found} times, expected once")
    module = re.sub(r"^export ", "", shared, flags=re.MULTILINE) + "\n" + own
    left = _ANY_IMPORT.search(module)
    if left:
        raise ValueError(f"bundle: {name}.mjs or page.mjs has {left[0].strip()!r} left, expected no other import")
    return module
