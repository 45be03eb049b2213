"""The startup kit that was taken last, and what it offers that this hospital's own policy allows."""

from __future__ import annotations

from contracts.enrolment import StartupKit, open_kit
from contracts.errors import ConsiliumError
from site_runtime.config import load_site
from site_runtime.home import SiteHome


def taken_kit(home: SiteHome) -> StartupKit | None:
    """The kit that was taken last, or None.

    Raises:
        ConsiliumError: E801, its file is damaged.
    """
    try:
        return open_kit(home.kit.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ConsiliumError) as error:
        raise ConsiliumError("E801", f"{home.kit}: {error}") from error


def allowed_bucket(home: SiteHome) -> str | None:
    """The bucket to which this hospital's tensors go: the one that both the kit and the policy name.

    None: they go to the coordinator. So they do when a file cannot be read; who needs the file says so.
    """
    try:
        kit, allowed = taken_kit(home), load_site(home).policy.exchange
    except ConsiliumError:
        return None
    return allowed if kit is not None and kit.exchange == allowed else None
