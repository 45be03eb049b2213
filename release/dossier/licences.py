"""Licences of packages as SPDX writes them, where what a package states has one meaning."""

from __future__ import annotations

import re
from typing import Any

# SPDX identifiers that installed packages use; anything else is given as the name that the package states.
SPDX = frozenset(
    {
        "0BSD", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause",
        "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0", "CC0-1.0", "EPL-1.0", "EPL-2.0", "GPL-2.0-only",
        "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "HPND", "ISC", "LGPL-2.1-only",
        "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0",
        "NCSA", "OFL-1.1", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib", "ZPL-2.1",
    }
)  # fmt: skip
# Only names that mean one licence: `BSD` alone could be several.
_SPELLED = {
    "2-clause bsd": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "isc license": "ISC",
    "mit": "MIT",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "new bsd": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "the mit license": "MIT",
    "the unlicense (unlicense)": "Unlicense",
}
_OPERATORS = {"AND", "OR", "WITH"}
_EXCEPTIONS = {"LLVM-exception", "GCC-exception-3.1"}


def licences(stated: str) -> list[dict[str, Any]]:
    """Return a licence as CycloneDX writes it: SPDX identifier, SPDX expression, or the name as stated."""
    text = " ".join(stated.split())
    if not text or text.upper() == "UNKNOWN":
        return []
    identifier = text if text in SPDX else _SPELLED.get(text.lower())
    if identifier is not None:
        return [{"license": {"id": identifier}}]
    words = re.findall(r"[^\s()]+", text)
    known = SPDX | _OPERATORS | _EXCEPTIONS
    if len(words) > 2 and all(word in known for word in words) and _OPERATORS & set(words):
        return [{"expression": text}]
    return [{"license": {"name": text}}]
