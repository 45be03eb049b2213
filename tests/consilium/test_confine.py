"""A confined process reaches everything but the hidden folders, whichever way the kernel offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from consilium.confine import allowed_paths, landlock_version

_PROBE = """
import os, sys
from pathlib import Path
import consilium.confine as confine
home, own, way = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if way == "namespace":
    confine.landlock_version = lambda: 0
print(confine.hide([home], keep=[own]))
def can(action):
    try:
        action()
    except OSError:
        return "no"
    return "yes"
child = [sys.executable, "-c", "import sys; open(sys.argv[1]).read()"]
import subprocess
print("coordinator", can(lambda: (home / "coordinator" / "secret").read_text()))
print("listing", can(lambda: (home / "coordinator" / "secret").stat() and os.listdir(home / "coordinator")))
print("other", can(lambda: (home / "sites" / "b" / "secret").read_text()))
print("writing", can(lambda: (home / "coordinator" / "new").write_text("x")))
print("link", can(lambda: (own / "link").read_text()))
print("root", can(lambda: open("/proc/%d/root%s" % (os.getppid(), home / "coordinator" / "secret")).read()))
print("child", subprocess.run([*child, str(home / "coordinator" / "secret")], stderr=-3).returncode)
print("own", can(lambda: (own / "secret").read_text()), can(lambda: (own / "new").write_text("x")))
print("python", can(lambda: open(os.__file__).read()), can(lambda: os.listdir("/usr")))
"""


def _home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for folder in ("coordinator", "sites/a", "sites/b"):
        (home / folder).mkdir(parents=True)
        (home / folder / "secret").write_text("x")
    (home / "sites" / "a" / "link").symlink_to(home / "coordinator" / "secret")
    return home


@pytest.mark.parametrize("way", ["landlock", "namespace"])
def test_a_site_reaches_neither_the_coordinator_nor_another_site(tmp_path: Path, way: str) -> None:
    home = _home(tmp_path)
    if way == "landlock" and landlock_version() == 0:
        pytest.skip("this kernel has no Landlock")
    command = [sys.executable, "-c", _PROBE, str(home), str(home / "sites" / "a"), way]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if way == "namespace" and answer.stdout.startswith("none"):
        pytest.skip("only root may make a mount namespace")
    lines = dict(line.split(" ", 1) for line in answer.stdout.splitlines()[1:])
    assert answer.stdout.splitlines()[0] == way, answer.stderr
    assert lines["coordinator"] == lines["other"] == lines["link"] == lines["listing"] == "no"
    assert lines["own"] == "yes yes"
    assert lines["python"] == "yes yes"
    assert lines["child"] == "1"
    if way == "landlock":
        assert lines["writing"] == lines["root"] == "no"
    assert not (home / "coordinator" / "new").exists()


def test_a_link_into_a_hidden_folder_opens_no_way(tmp_path: Path) -> None:
    home = _home(tmp_path)
    (tmp_path / "door").symlink_to(home / "coordinator")
    allowed = allowed_paths([home.resolve()], [(home / "sites" / "a").resolve()])
    assert tmp_path / "door" not in allowed
    assert not any(path in (home.parent, home, home / "coordinator") for path in allowed)
