"""`consilium run`: trigger a study's DAGs and follow the head until a release, a rejection or a question."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from consilium.airflow_home import passwords_file
from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from consilium.platform import Platform, current
from consilium.rest import Question
from contracts.errors import SENTENCES, ConsiliumError
from contracts.schedule import last_exchange, most_exchanges, title_of
from contracts.study import StudyProtocol
from tasks.head import Head, load_head, load_protocol
from tasks.masked_round import masks_line
from tasks.store import load_record

app = typer.Typer()

POLL_SECONDS = 0.5
INTAKE_SECONDS = 600.0
ENDED = ("released", "rejected")

Answering = Callable[[Question], None]


@dataclass
class Follower:
    """Follows one study in Airflow; says what changes, once."""

    platform: Platform
    protocol: StudyProtocol
    bar: Progress
    task: TaskID
    said: str = ""

    def say(self, text: str) -> None:
        """Print a line above the progress bar, unless it was the last one said."""
        if text != self.said:
            self.bar.console.print(text, highlight=False)
            self.said = text

    def show(self, description: str, done: float) -> None:
        """Update the progress bar."""
        self.bar.update(self.task, description=description, completed=done)

    def head(self) -> Head:
        """The study's head."""
        return load_head(self.platform.coordinator, self.protocol.study)


def total_steps(protocol: StudyProtocol) -> int:
    """Intake, every round, and the release's three parts."""
    return 1 + most_exchanges(protocol) + 3


def intake(follower: Follower) -> dict[str, Any]:
    """Run the study's intake and return its record.

    Raises:
        ConsiliumError: E109, it did not end in time or failed; E506, too few hospitals are in.
    """
    airflow, study = follower.platform.airflow, follower.protocol.study
    dag = f"{study}.intake"
    airflow.pause(dag, False)
    run = airflow.trigger(dag)
    deadline = time.monotonic() + INTAKE_SECONDS
    while (state := airflow.run(dag, run).state) not in ("success", "failed"):
        done = sum(t.state == "success" for t in airflow.tasks(dag, run).values())
        follower.show(f"intake at every hospital ({done} done)", 0)
        if time.monotonic() > deadline:
            raise ConsiliumError("E109", f"{dag} is {state} after {INTAKE_SECONDS:.0f} seconds")
        time.sleep(POLL_SECONDS)
    record = load_record(follower.platform.coordinator, study, "intake")
    for site, checks in sorted(record["quality_failed"].items()):
        follower.say(f"[yellow]{site}[/] is out: data quality: {', '.join(checks)}")
    for site, number in sorted(record["refused"].items()):
        follower.say(f"[yellow]{site}[/] is out: it refused with {number}")
    follower.say(f"intake: {', '.join(record['admitted']) or 'nobody'} in")
    return record


def rounds(follower: Follower) -> Head:
    """Start or resume the rounds and follow them until the head says finished.

    Raises:
        ConsiliumError: E506, a round missed its quorum.
    """
    protocol = follower.protocol
    airflow = follower.platform.airflow
    dag = f"{protocol.study}.round"
    airflow.pause(dag, False)
    airflow.trigger(dag)
    seen = protocol.first_round
    while True:
        head = follower.head()
        last = last_exchange(protocol, len(head.fold_sites))
        while seen < head.round or (head.status != "running" and seen == head.round == last):
            follower.say(round_line(load_record(follower.platform.coordinator, protocol.study, str(seen))))
            seen += 1
        if head.status not in ("registered", "running"):
            return head
        if head.refusals and head.reason:
            raise ConsiliumError("E506", head.reason)
        title = title_of(protocol, head.round, head.fold_sites)
        follower.show(title, 1 + head.round - protocol.first_round)
        time.sleep(POLL_SECONDS)


def round_line(record: dict[str, Any]) -> str:
    """One line about a closed round, or a lost one."""
    parts = [f"round {record['round']}: {', '.join(record['admitted'])}"]
    if record["status"] == "lost":
        parts = [f"round {record['round']} is lost, the model stays: {record['reason']}"]
    elif summary := masks_line(record):
        parts.append(summary)
    if record["refused"]:
        parts.append("refused: " + ", ".join(f"{s} {r['number']}" for s, r in record["refused"].items()))
    if record["silent"]:
        parts.append(f"silent: {', '.join(record['silent'])}")
    if record.get("absent"):
        parts.append("absent: " + ", ".join(f"{s} ({why})" for s, why in record["absent"].items()))
    if record.get("epsilon"):
        parts.append(f"epsilon {record['epsilon']['maximum']:.3f} of {record['epsilon']['planned']:g}")
    return "; ".join(parts)


def release(follower: Follower, answering: Answering | None) -> Head:
    """Follow the release until it is published or rejected, or a person is asked whom nobody answers for.

    Raises:
        ConsiliumError: E601, E602, E603 or whatever stopped it.
    """
    airflow, study = follower.platform.airflow, follower.protocol.study
    dag = f"{study}.release"
    airflow.pause(dag, False)
    done = total_steps(follower.protocol) - 3
    while (head := follower.head()).status not in ENDED:
        runs = airflow.runs(dag)
        if runs and runs[-1].state == "failed":
            if (stopped := follower.head()).reason:  # as it is now: the run may have ended since
                raise _refusal(stopped.reason or "")
            failed = [t for t, s in airflow.tasks(dag, runs[-1].id).items() if s.state == "failed"]
            raise ConsiliumError("E109", f"{dag} {runs[-1].id} failed at {', '.join(failed)}: see its log")
        steps = {t.rsplit(".")[-1] for t in _running(follower, dag, runs[-1].id)} if runs else set()
        follower.show(f"release: {', '.join(sorted(steps)) or 'starting'}", done)
        if head.candidate is not None:
            question = next((q for q in airflow.questions(dag) if not q.answered), None)
            if question is not None:
                follower.say(f"sign-off as {question.role} asked for candidate {head.candidate[:16]}")
                if answering is None:
                    return head
                answering(question)
        time.sleep(POLL_SECONDS)
    if head.status == "rejected":
        raise _refusal(head.reason or "")
    return head


def _refusal(reason: str) -> ConsiliumError:
    """The numbered error that a head's reason quotes."""
    number = reason[:4] if reason[:4] in SENTENCES else "E704"
    return ConsiliumError(number, reason.partition(". ")[2] or reason)


def _running(follower: Follower, dag: str, run: str) -> list[str]:
    return [t for t, s in follower.platform.airflow.tasks(dag, run).items() if s.state == "running"]


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A study that is registered here.")],
    json: Json = False,
) -> None:
    """Trigger intake and rounds, follow them, and end when a person is asked to approve the release."""
    with reporting_refusals(json):
        from consilium.simulate import progress_bar

        platform = current(home_folder())
        protocol = load_protocol(platform.coordinator, study)
        with progress_bar() as bar:
            bar.disable = json
            bar.console.quiet = json
            follower = Follower(platform, protocol, bar, bar.add_task(study, total=total_steps(protocol)))
            if follower.head().status == "registered":
                intake(follower)
            if follower.head().status in ("registered", "running"):
                rounds(follower)
            head = release(follower, None)
        if json:
            print_json(head.model_dump(mode="json"))
        elif head.status == "released":
            screen.print(f"{study} is released; `consilium release list` shows where.")
        else:
            roles = " and ".join(protocol.sign_off.roles)
            screen.print(f"Candidate {head.candidate} waits for its sign-off by {roles} at {platform.url}")
            screen.print(
                f"Each is an Airflow user of that name; passwords: {passwords_file(platform.coordinator)}"
            )
