"""What a hospital permits, as its privacy officer writes it: the `policy:` section of `site.yaml`.

Default-deny: what is not named is not permitted, and a field that is not known here is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from contracts.enrolment import BucketUrl
from contracts.fields import Text
from contracts.study import StudyProtocol

Use = Literal["training", "evaluation"]
Output = Literal["updates", "sums", "evaluation", "ledger"]

Covered = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$|^[a-z][a-z0-9-]{1,63}$")]

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_HOURS = re.compile(
    rf"({'|'.join(DAYS)})(?:-({'|'.join(DAYS)}))? ([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)"
)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Irb(_Section):
    """The ethics committee's approval, or why none is needed."""

    protocol: Annotated[Text, Field(min_length=1)]  # the committee's own reference
    reliance: Text = "none"  # the single-IRB reliance agreement, where another committee decided
    approved: date
    expires: date  # the last day on which it holds
    # Studies that it covers, by name (every version of them) or by protocol hash (that version alone). `any`
    # is for data of no patient: simulated or published.
    scope: Annotated[list[Covered], Field(min_length=1)] | Literal["any"]

    @model_validator(mode="after")
    def _ordered(self) -> Irb:
        if self.expires < self.approved:
            raise ValueError(f"expires {self.expires}, expected a day after approved {self.approved}")
        return self


class Dua(_Section):
    """The data use agreement with the federation.

    Outputs: `updates` of a model, `sums` over patients (normalisation, the histogram for a threshold),
    `evaluation` reports on the holdout, and excerpts of the privacy `ledger` that prove an epsilon.
    """

    reference: Text = ""
    purposes: Annotated[list[Use], Field(min_length=1)]
    permitted_outputs: list[Output]
    expires: date  # the last day on which it holds


class Dpia(_Section):
    """The data protection impact assessment (GDPR, article 35)."""

    reference: Annotated[Text, Field(min_length=1)]
    date: date


class Resources(_Section):
    """The most that one study may take of this hospital's computers."""

    max_seconds: Annotated[int, Field(ge=1)] | None = None  # of one task
    max_steps: Annotated[int, Field(ge=1)] | None = None  # of the optimiser, in one task


def _known_hours(value: str) -> str:
    if not _HOURS.fullmatch(value):
        raise ValueError("expected such as 'Mon-Fri 20:00-06:00' or 'Sun 00:00-00:00' (the whole day)")
    return value


def _known_zone(value: str) -> str:
    try:
        _zone(value)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError("expected a name of the IANA time zone database, such as Europe/Paris") from error
    return value


def _zone(name: str) -> tzinfo:
    """A time zone by its name; UTC also where the machine has no database of them."""
    return UTC if name == "UTC" else ZoneInfo(name)


Hours = Annotated[str, AfterValidator(_known_hours)]


class Policy(_Section):
    """What may be done with this hospital's data and what may leave it, whatever a study asks for."""

    irb: Irb | None = None
    dua: Dua | None = None
    dpia: Dpia | None = None
    minimum_cohort: Annotated[int, Field(ge=1)] = 50  # patients in training that a study must ask for
    minimum_cell: Annotated[int, Field(ge=2)] = 10  # the smallest count of patients that may leave
    # May an update without differential privacy leave? `summed`: only under secure aggregation.
    exact_updates: bool | Literal["summed"] = False
    models: list[str] | Literal["any"] = []
    strategies: list[str] | Literal["any"] = []
    aggregation: list[str] | Literal["any"] = []
    time_zone: Annotated[str, AfterValidator(_known_zone)] = "UTC"
    hours: list[Hours] = []  # when data may be touched; always when there is none
    resources: Resources = Resources()
    require_two_approvals: bool = True
    # Where tensors may go besides the coordinator, if its startup kit offers the same; None: nowhere.
    exchange: BucketUrl | None = None

    def lets_exact_leave(self, protocol: StudyProtocol) -> bool:
        """Say whether an exact update of this study may leave."""
        return protocol.secure is not None if self.exact_updates == "summed" else self.exact_updates

    def opens(self, moment: datetime) -> bool:
        """Say whether data may be touched at this moment (with a time zone)."""
        here = moment.astimezone(_zone(self.time_zone))
        return not self.hours or any(
            begin <= here.replace(tzinfo=None) < end for begin, end in _spans(self.hours, here)
        )

    def today(self, moment: datetime) -> date:
        """The day at this hospital."""
        return moment.astimezone(_zone(self.time_zone)).date()


def permitted(name: str, names: Sequence[str]) -> bool:
    """Say whether a list of the policy names something; the word `any` in place of a list does."""
    return names == "any" or name in names


def listed(names: Sequence[str]) -> str:
    """Say what a list of the policy, or the word in its place, permits."""
    return names if isinstance(names, str) else ", ".join(names) or "none"


def _spans(hours: Sequence[str], here: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Beginning and end, on the wall clock, of every span that began today or yesterday."""
    midnight = here.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    for text in hours:
        found = _HOURS.fullmatch(text)
        assert found is not None
        first, last, *clock = found.groups()
        begin, end = DAYS.index(first), DAYS.index(last or first)
        from_, until = (timedelta(hours=int(h), minutes=int(m)) for h, m in (clock[:2], clock[2:]))
        length = until - from_ if until > from_ else until - from_ + timedelta(days=1)
        for day in (midnight, midnight - timedelta(days=1)):
            if (day.weekday() - begin) % 7 <= (end - begin) % 7:
                yield day + from_, day + from_ + length


def utc_now() -> datetime:
    """The clock of the hospital's machine."""
    return datetime.now(UTC)
