"""Headers and bodies of machines: bounded in size and time, one token, JSON of one reading."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from plugins.refused import Refused

MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 << 10
MAX_TOKEN_BYTES = 4096
IDLE_SECONDS = 10.0  # without a byte of the body
BODY_SECONDS = 30.0  # for the whole body
STALL_SECONDS = 0.5
REFUSAL = {"detail": "refused at the gate"}

# Of a machine's headers only these reach Airflow; the gate writes the others itself.
_PASSED_HEADERS = {b"host", b"accept", b"user-agent", b"airflow-api-version"}

Headers = Iterable[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def authorisations(headers: Headers) -> list[str]:
    """The tokens of all `Authorization` headers, without the word Bearer."""
    texts = [value.decode("latin-1").strip() for name, value in headers if name.lower() == b"authorization"]
    return [text[7:].strip() if text.lower().startswith("bearer ") else text for text in texts]


def first_authorisation(headers: Headers) -> str | None:
    """The token of the first `Authorization` header: the one that Airflow's own checks read."""
    return next(iter(authorisations(headers)), None)


def drop_later_authorisations(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Keep the first `Authorization` header only, so that nobody behind the gate reads another one."""
    kept, seen = [], False
    for name, value in headers:
        if name.lower() == b"authorization":
            if seen:
                continue
            seen = True
        kept.append((name, value))
    return kept


def check_headers(headers: list[tuple[bytes, bytes]]) -> None:
    """Check number, size and singularity of a machine's headers.

    Raises:
        Refused: 431 too many or too large; 400 a second token, or a body in another coding.
    """
    if (
        len(headers) > MAX_HEADERS
        or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES
    ):
        raise Refused(431, "header_size")
    names = [name.lower() for name, _ in headers]
    if names.count(b"authorization") > 1 or names.count(b"content-length") > 1:
        raise Refused(400, "header_twice")
    if b"content-encoding" in names:
        raise Refused(400, "body_coding")
    if any(len(token) > MAX_TOKEN_BYTES for token in authorisations(headers)):
        raise Refused(431, "header_size")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read the whole body of at most `limit` bytes, while it makes progress.

    Raises:
        Refused: 413 too large; 408 too slow; 400 disconnected.
    """
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and not (value.isdigit() and int(value[:12]) <= limit):
            raise Refused(413, "body_size", repr(value[:20]))
    body = bytearray()
    end, over = time.monotonic() + BODY_SECONDS, False
    while True:
        left = end - time.monotonic()
        message = None if over else await _next(receive, min(IDLE_SECONDS, left))
        over = left <= 0
        if message is None:
            raise Refused(408, "body_slow", f"{len(body)} bytes")
        if message["type"] == "http.disconnect":
            raise Refused(400, "disconnected")
        body += message.get("body", b"")
        if len(body) > limit:
            raise Refused(413, "body_size", f"more than {limit}")
        if not message.get("more_body", False):
            return bytes(body)


async def _next(receive: Receive, seconds: float) -> Message | None:
    """The next part of a body, or None when none came in time.

    When this server stood still itself, the time is up before it has looked at what lies there: so it looks.
    """
    for wait in (max(seconds, 0.0), STALL_SECONDS):
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(receive(), wait)
    return None


def parsed(body: bytes) -> Any:
    """Parse a body of JSON (RFC 8259: no NaN, UTF-8); None for an empty one.

    Numbers beyond 64 bits and halves of surrogate pairs are JSON too, and fail somewhere behind the gate,
    each time with pages of log: they are refused.

    Raises:
        Refused: 400.
    """
    try:
        if not body:
            return None
        numbers = {"parse_constant": _no_constant, "parse_float": _finite, "parse_int": _short}
        value = json.loads(body.decode(), **numbers)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # fails for half of a pair
        return value
    except (ValueError, RecursionError) as error:
        raise Refused(400, "body_form", str(error)[:100]) from error


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no number of 64 bits")
    return number


def _short(text: str) -> int:
    if not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError(f"{text[:20]} is no number of 64 bits")
    return number


def with_body(scope: Scope, value: Any, token: str) -> tuple[Scope, Receive]:
    """The same request with `value` as its body and `token`, and a `receive` that delivers it."""
    data = b"" if value is None else json.dumps(value).encode()
    headers = [(name, text) for name, text in scope["headers"] if name.lower() in _PASSED_HEADERS]
    headers.append((b"authorization", token.encode()))
    if data:
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    return {**scope, "headers": headers}, delivering(data, _nothing_more)


async def _nothing_more() -> Message:
    return await asyncio.Future()  # the server cancels us when it is done


def delivering(body: bytes, receive: Receive) -> Receive:
    """A `receive` that delivers a body that was read, and then what the server has to say."""
    delivered = False

    async def first() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first


def with_token(scope: Scope, token: str) -> Scope:
    """The same request with `token` in place of its own."""
    headers = [(name, text) for name, text in scope["headers"] if name.lower() != b"authorization"]
    return {**scope, "headers": [*headers, (b"authorization", token.encode())]}


async def answer(send: Send, status: int, content: Any, headers: Headers = ()) -> None:
    """Send a small answer of JSON."""
    data = json.dumps(content).encode()
    all_headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*all_headers, *headers]})
    await send({"type": "http.response.body", "body": data})


async def refuse(send: Send, status: int) -> None:
    """Send the one refusal. The connection ends: a body that was not read keeps none open."""
    headers = [(b"connection", b"close")]
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))  # seconds; the stock worker waits so long
    await answer(send, status, REFUSAL, headers)
