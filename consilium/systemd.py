"""systemd units that keep a coordinator or a site running: started again whatever ends them, and confined."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

from consilium.airflow_home import coordinator_environment
from consilium.nginx import command
from consilium.templates import fill
from durable.files import write_atomic
from tasks.home import CoordinatorHome
from tasks.settings import Settings

PREPARE = "consilium-prepare"
_KEPT = ("AIRFLOW_HOME", "CONSILIUM_HOME", "TMPDIR", "SCARF_ANALYTICS", "DO_NOT_TRACK", "PYTHONUNBUFFERED")
_FOREVER = "Restart=always\nRestartSec=5\nKillMode=mixed\nTimeoutStopSec=30\nExecStart="


def write_units(home: CoordinatorHome, settings: Settings, components: dict[str, list[str]]) -> list[Path]:
    """Write the units of a coordinator, for the user who calls.

    Args:
        components: name and command of each long-running part of Airflow.

    Returns:
        the files.
    """
    environment = {k: v for k, v in coordinator_environment(home).items() if k in _KEPT}
    consilium = [sys.executable, "-m", "consilium"]
    units = {
        PREPARE: unit(
            "Consilium: configuration and database",
            "Type=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=600\nExecStart="
            + _exec([*consilium, "up", "--coordinator", "--prepare-only"]),
            environment,
            home.root.parent,
        )
    }
    for name, words in components.items():
        units[f"consilium-{name}"] = unit(
            f"Consilium: Airflow's {name}", _FOREVER + _exec(words), environment, home.root.parent, PREPARE
        )
    if settings.tls.mode == "proxy":
        units["consilium-nginx"] = unit(
            "Consilium: nginx",
            _FOREVER + _exec(command(home.nginx)),
            {},
            home.root,
            capabilities="CAP_NET_BIND_SERVICE",
        )
    for name, text in units.items():
        write_atomic(home.systemd / f"{name}.service", text.encode())
    return [home.systemd / f"{name}.service" for name in sorted(units)]


def site_unit(home: Path, arguments: list[str], verb: str = "start") -> str:
    """The unit that runs `consilium site start` or `site tunnel` for a site's home."""
    words = [sys.executable, "-m", "consilium", "site", verb, "--home", str(home), *arguments]
    return unit(f"Consilium: site {verb}", _FOREVER + _exec(words), {}, home)


def unit(
    description: str,
    service: str,
    environment: dict[str, str],
    folder: Path,
    requires: str = "",
    capabilities: str = "",
) -> str:
    """One unit; it writes below `folder` only."""
    return fill(
        "unit.service",
        description=description,
        service=service,
        environment=_words([f"{name}={value}" for name, value in sorted(environment.items())]),
        folder=str(folder).replace("%", "%%"),
        written=_words([str(folder)]),
        user=pwd.getpwuid(os.geteuid()).pw_name,
        after=f"\nRequires={requires}.service\nAfter={requires}.service" if requires else "",
        capabilities=capabilities,
    )


def _exec(command: list[str]) -> str:
    """A command; a dollar sign would begin a variable (systemd.service(5))."""
    return _words(command).replace("$", "$$")


def _words(words: list[str]) -> str:
    """Words as systemd reads them back (systemd.syntax(7), systemd.unit(5) for the percent sign)."""
    return " ".join(
        '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"' for word in words
    )
