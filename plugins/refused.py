"""What the gate says instead of passing a request on."""

from __future__ import annotations


class Refused(Exception):
    """A request that the gate does not let through.

    The sender reads the same sentence whatever the reason; the code is for the audit log, the detail for the
    server's own log.
    """

    def __init__(self, status: int, code: str, detail: str = "") -> None:
        self.status = status
        self.code = code
        self.detail = detail
        super().__init__(f"{code}: {detail}" if detail else code)


class Thrown(Exception):
    """A request that is answered with success and thrown away: what it carries stays in the hospital."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)
