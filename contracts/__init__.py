"""Every type that crosses the hospital boundary, and nothing else (design section 4).

A contract is a frozen pydantic model: no extra field, bounded strings and lists, finite numbers. What
crosses is a `Signed` envelope around the canonical JSON (RFC 8785) of one of them.
"""
