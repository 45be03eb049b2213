"""`consilium demo`: the main job, end to end, in real Airflow, on the embedded default study."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel

from consilium.airflow_home import OPERATOR, password
from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from consilium.platform import Platform
from consilium.repetition import permit_exact_updates
from consilium.repetition import without_privacy as exact
from consilium.rest import Question
from consilium.run import Follower, intake, release, rounds, total_steps
from consilium.simulate import interval, progress_bar
from consilium.simulation import achievable_at, simulate_study
from consilium.starting import ends_on_signal
from consilium.study import find_federation, find_study
from consilium.up import down, up
from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol, load_study
from durable.files import write_json
from site_runtime.home import SiteHome
from tasks.account import spent_of
from tasks.federation import coordinator_key
from tasks.folds import exchange_records
from tasks.head import Head
from tasks.store import load_record

app = typer.Typer()

STUDY = "icu-mortality-demo"
SETTLE_SECONDS = 5.0
APPROVAL = {
    "name": "demo script, not a person",
    "reason": "make demo answers its own question so that it can run to its end",
}


def answer_as_script(platform: Platform, question: Question, choice: str = "Approve") -> None:
    """Answer for a candidate through Airflow's API as the user of the role, saying that no person did.

    Airflow 3.3 fails a task whose question is answered before the process that asked it is reported as
    ended, a second or two later ("finished with state success, but the task instance's state attribute is
    running"). No person answers so fast; a script has to wait.
    """
    time.sleep(SETTLE_SECONDS)
    platform.airflow.as_role(question.role).answer(question, choice, {**APPROVAL, "role": question.role})


def without_privacy(protocol: StudyProtocol, federation: Path, sites: list[SiteHome]) -> dict[str, Any]:
    """Run the same study without differential privacy, in this process, and return its metrics.

    The simulated hospitals' split keys are taken over, so that both models are judged on the same holdouts.
    """
    with tempfile.TemporaryDirectory() as folder:
        willing = Path(folder) / "federation"
        permit_exact_updates(federation, willing)
        for site in sites:
            split_key = SiteHome(Path(folder) / "sites" / site.root.name).split_key
            split_key.parent.mkdir(parents=True)
            shutil.copyfile(site.split_key, split_key)
        simulation, _ = simulate_study(
            exact(protocol), willing, Path(folder), lambda text: None, release=False
        )
        metrics: dict[str, Any] = load_record(simulation.coordinator, protocol.study, "evaluation")["metrics"]
    return metrics


def run_demo(home: Path, port: int, bar_disabled: bool) -> dict[str, Any]:
    """Start, run and release the study; everything that was started is ended again, whatever happens.

    Raises:
        ConsiliumError: the first refusal.
    """
    protocol = load_study(find_study(STUDY))
    federation = find_federation(STUDY, None)
    started = time.monotonic()
    with progress_bar() as bar, ends_on_signal():
        bar.disable = bar_disabled
        bar.console.quiet = bar_disabled
        task = bar.add_task("starting", total=total_steps(protocol))
        platform = up(home, federation, [protocol], port, lambda text: bar.update(task, description=text))
        try:
            best = achievable_at(platform.coordinator, protocol, [platform.site(s) for s in platform.sites])
            bar.console.print(welcome(platform))
            follower = Follower(platform, protocol, bar, task)
            head = follow(follower)
        finally:
            down(home)
        bar.update(task, description="the same study without privacy, for comparison")
        plain = without_privacy(protocol, federation, [platform.site(s) for s in platform.sites])
    metrics = load_record(platform.coordinator, STUDY, "evaluation")["metrics"]
    last = load_record(platform.coordinator, STUDY, str(protocol.rounds))
    return {
        "study": STUDY,
        "status": head.status,
        "metrics": metrics,
        "without_privacy": plain,
        "achievable_auroc": best,
        "noise_multiplier": last["noise_multiplier"],
        "epsilon": spent_of(exchange_records(platform.coordinator, protocol)),
        "release": str(newest_release(platform)),
        "key": coordinator_key(platform.coordinator).public,
        "seconds": round(time.monotonic() - started, 1),
    }


def follow(follower: Follower) -> Head:
    """Intake, rounds and release; the question is answered by this script."""
    head = follower.head()
    if head.status == "registered":
        intake(follower)
    if head.status in ("registered", "running"):
        rounds(follower)
    return release(follower, lambda question: answer_as_script(follower.platform, question))


def newest_release(platform: Platform) -> Path:
    """The release that this study published last."""
    from release.registry import releases

    return [r for r in releases(platform.coordinator.releases) if r.manifest.study == STUDY][-1].path


def welcome(platform: Platform) -> Panel:
    """Where to watch."""
    secret = password(platform.coordinator, OPERATOR)
    return Panel(
        f"Airflow: [bold]{platform.url}/dags/{STUDY}.round[/]\n"
        f"user [bold]{OPERATOR}[/], password [bold]{secret}[/]",
        title="watch it in Airflow while it runs",
        expand=False,
    )


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port of the coordinator on this machine.")] = 8080,
    json: Json = False,
) -> None:
    """Four simulated hospitals train one model in real Airflow; a verified release comes out."""
    with reporting_refusals(json):
        home = home_folder()
        if (home / "coordinator" / "studies" / STUDY).exists():
            raise ConsiliumError(
                "E104",
                f"{home} holds an earlier demo: `make clean`, or name a fresh folder by CONSILIUM_HOME",
            )
        try:
            found = run_demo(home, port, json)
        except KeyboardInterrupt:
            screen.print("interrupted; everything that was started is ended")
            raise typer.Exit(130) from None
        write_json(home / "demo.json", found)
        if json:
            print_json(found)
        else:
            show(found)


def show(found: dict[str, Any]) -> None:
    """Print the demo's outcome."""
    pooled, plain, best = (
        found["metrics"]["pooled"],
        found["without_privacy"]["pooled"],
        found["achievable_auroc"],
    )
    epsilon = found["epsilon"]
    screen.print(
        Panel(
            f"AUROC with privacy     {interval(pooled['auroc'])}\n"
            f"AUROC without privacy  {interval(plain['auroc'])}\n"
            f"best achievable AUROC  {best['pooled']:.3f} (known, since the patients are simulated)\n"
            f"epsilon {epsilon['maximum']:.3f} at delta {epsilon['delta']:g} per patient, whole study; "
            f"sigma {found['noise_multiplier']:g}\n"
            f"{found['seconds']} s",
            title=f"{found['study']}: {found['status']}",
            expand=False,
        )
    )
    screen.print("release:", found["release"], soft_wrap=True, highlight=False)
    screen.print("verify: consilium release verify", found["release"], soft_wrap=True, highlight=False)
