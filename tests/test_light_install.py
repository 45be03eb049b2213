"""The light install: who verifies a release or a ledger needs no torch, Opacus, Airflow, GX or DVC."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.signing import SigningKey
from release.signature import ReleaseKey
from tests import light
from tests.full_release import full_release

ROOT = Path(__file__).resolve().parent.parent

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def outcome_is_right(printed: str) -> None:
    """Check what `light.py` printed."""
    found: dict[str, Any] = json.loads(printed)
    assert found["heavy"] == {}
    assert found["ledger"] == 2  # genesis and the reservation
    assert found["epsilon"] == pytest.approx(found["promised"], rel=1e-6) and found["epsilon"] <= 3.0
    assert 0.9 < found["noise"] < 1.1


def test_the_light_modules_work_and_import_nothing_heavy() -> None:
    # In a process of its own: the tests have imported everything.
    done = subprocess.run(
        [sys.executable, light.__file__],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome_is_right(done.stdout)


def build(folder: Path) -> Path:
    """Make the wheel as docs/deploying-a-release.md says, from a copy: a build leaves files behind."""
    unwanted = shutil.ignore_patterns(".*", "build", "out", "*.egg-info", "__pycache__", "lightning_logs")
    source = shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        [*pip, "--wheel-dir", folder, source], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project as the one file that a deployment team is handed."""
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """An environment with the wheel, the base dependencies and the `verify` extra."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.fail("uv is missing: `make install` puts it into .venv")
    folder = tmp_path_factory.mktemp("bare")
    environment = {**os.environ, "VIRTUAL_ENV": str(folder / "env")}
    if "PIP_FIND_LINKS" in os.environ:  # which uv does not read
        environment.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
    for command in (
        [uv, "venv", "-q", "--python", sys.executable, str(folder / "env")],
        [uv, "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), f"{wheel}[verify]"],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "env" / "bin"


def without_network() -> list[str]:
    """What to put before a command so that it has no network; nothing where that is forbidden."""
    prefix = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None:
        return []
    allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if allowed else []


@pytest.fixture
def run(bare: Path, tmp_path: Path) -> Run:
    """Run a program of the bare environment far from the checkout, with a home of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["CONSILIUM_HOME"] = str(tmp_path / "home")

    def call(program: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        command = [*without_network(), str(bare / program), *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return call


@pytest.mark.slow
def test_the_bare_environment_holds_nothing_heavy(run: Run) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {light.HEAVY!r} if find_spec(n)])"
    assert run("python", "-c", code).stdout.strip() == "[]"


@pytest.mark.slow
def test_contracts_release_and_privacy_work_in_the_bare_environment(run: Run, tmp_path: Path) -> None:
    script = shutil.copy(light.__file__, tmp_path / "light.py")
    done = run("python", script)
    assert done.returncode == 0, done.stderr
    outcome_is_right(done.stdout)


@pytest.mark.slow
def test_the_same_checkout_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Whoever is told a SHA-256 can build the wheel again and compare."""
    assert build(tmp_path).read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_a_release_is_verified_in_the_bare_environment_without_network_and_refused_when_changed(
    run: Run, tmp_path: Path
) -> None:
    release = full_release(tmp_path / "made")
    public = tmp_path / "release.pub.pem"
    public.write_text(release.key.public.pem)
    if without_network():
        socket = "import socket; socket.create_connection(('192.0.2.1', 443), 2)"
        assert "unreachable" in run("python", "-c", socket).stderr

    verify = ("release", "verify", release.folder, "--key")
    done = run("consilium", *verify, public, "--json", "--fingerprint", release.key.public.fingerprint)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check["passed"] for check in json.loads(done.stdout)["checks"]}
    for name in ("signature", "digests", "ledgers", "events", "schemas", "model file", "golden rows"):
        assert checks[name] is True, name
    assert False not in checks.values()
    done = run("consilium", *verify, public)
    assert done.returncode == 0 and "Verified." in done.stdout

    stranger = tmp_path / "stranger.pub.pem"
    stranger.write_text(ReleaseKey.make(tmp_path / "stranger.pem").public.pem)
    done = run("consilium", *verify, stranger)
    assert done.returncode == 1 and "E702" in done.stderr
    model = release.folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    done = run("consilium", *verify, public)
    assert done.returncode == 1 and "E701" in done.stderr


@pytest.mark.slow
def test_the_commands_of_the_light_install_answer(run: Run, tmp_path: Path) -> None:
    done = run("consilium", "--help")
    assert done.returncode == 0 and "simulate" in done.stdout
    done = run("consilium", "contracts", "Refusal")
    assert json.loads(done.stdout)["additionalProperties"] is False
    done = run("consilium", "release", "list", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == []
    for noun in ("release", "ledger", "contracts"):
        assert run("consilium", noun, "--help").returncode == 0


@pytest.mark.slow
def test_a_ledger_that_was_handed_over_is_verified_in_the_bare_environment(run: Run, tmp_path: Path) -> None:
    from privacy.accountant import Spend
    from privacy.ledger import Ledger

    key, path = SigningKey.generate("ash"), tmp_path / "ash.jsonl"
    ledger = Ledger(path, "ash", "ash", key)
    plan = {"study": "demo", "plan": "0" * 64, "purpose": "training"}
    ledger.reserve(**plan, spend=Spend(0.1, 1.0, 10), epsilon_cap=10.0, delta=1e-5)
    arguments = ("ledger", "verify", "--file", path, "--public", key.public, "--json")
    done = run("consilium", *arguments)
    assert done.returncode == 0 and json.loads(done.stdout)[0]["head"] == ledger.head, done.stderr
    path.write_bytes(path.read_bytes().replace(b'"steps":10', b'"steps":11'))
    done = run("consilium", *arguments)
    assert done.returncode == 1 and json.loads(done.stdout)["error"]["number"] == "E402"
