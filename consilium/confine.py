"""Take folders away from this process and its children: a site process cannot read the coordinator's home.

Landlock (Linux 5.13, `landlock(7)`) is an allow-list: everything is allowed except what lies below the
hidden folders, so the siblings of each step of the way to them are allowed one by one. A file that appears
later beside such a step is out of reach too; temporary files therefore go to the home's own `tmp`.
Where the kernel has no Landlock, root covers the folders with an empty file system in a mount namespace.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38
_NEW_MOUNT_NAMESPACE = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000

# Access rights by the version of the interface that brought them (linux/landlock.h).
_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_FILE_RIGHTS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # execute, write, read, truncate, device ioctl

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """Version of the kernel's Landlock interface, 0 when it has none."""
    version: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(version, 0)


def hide(folders: Iterable[Path], keep: Iterable[Path] = ()) -> str:
    """Make `folders` unreachable for this process and all it starts, except for those in `keep` below them.

    There is no way back. Call it while the process has one thread: Landlock binds the calling thread.

    Returns:
        "landlock", "namespace", or "none" when this machine offers neither: then nothing is hidden.
    """
    hidden = [folder.resolve() for folder in folders]
    kept = [folder.resolve() for folder in keep]
    version = landlock_version()
    if version >= 1:
        _landlock(allowed_paths(hidden, kept), version)
        return "landlock"
    if os.geteuid() == 0 and _cover(hidden, kept):
        return "namespace"
    return "none"


def allowed_paths(hidden: list[Path], kept: list[Path]) -> list[Path]:
    """Return the paths whose hierarchies together are everything but `hidden`, plus `kept`."""
    allowed = [folder for folder in kept if folder.exists()]
    # A folder is opened up into its children when something hidden lies below it.
    waiting = [Path("/")]
    while waiting:
        folder = waiting.pop()
        if folder in hidden:
            continue
        if not any(folder in other.parents for other in hidden):
            allowed.append(folder)
            continue
        # A link needs no rule of its own: what it leads to is allowed, or not, where it lies.
        waiting += [child for child in folder.iterdir() if not child.is_symlink()]
    return allowed


def _landlock(allowed: list[Path], version: int) -> None:
    rights = sum(bits for since, bits in _RIGHTS.items() if since <= version)
    attribute = struct.pack("=Q", rights)
    ruleset = _libc.syscall(_CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint32(0))
    _checked(ruleset, "landlock_create_ruleset")
    try:
        for path in allowed:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue  # it went away, or its file system cannot be opened: then it stays forbidden
            try:
                folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                rule = struct.pack("=Qi", rights if folder else rights & _FILE_RIGHTS, descriptor)
                result = _libc.syscall(
                    _ADD_RULE, ctypes.c_int(ruleset), _PATH_BENEATH, rule, ctypes.c_uint32(0)
                )
                _checked(result, f"landlock_add_rule {path}")
            finally:
                os.close(descriptor)
        _checked(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        _checked(_libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock")
    finally:
        os.close(ruleset)


def _cover(hidden: list[Path], kept: list[Path]) -> bool:
    """Mount an empty file system over each hidden folder, in a mount namespace of this process."""
    if _libc.unshare(_NEW_MOUNT_NAMESPACE) != 0:
        return False
    if _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None) != 0:
        return False
    held = {folder: os.open(folder, os.O_PATH) for folder in kept if folder.exists()}
    for folder in hidden:
        if folder.is_dir() and _libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"mode=700") != 0:
            return False
    for folder, descriptor in held.items():
        if any(cover in folder.parents for cover in hidden):
            folder.mkdir(parents=True, exist_ok=True)
            bind = ctypes.c_ulong(0x1000)  # MS_BIND
            source = os.fsencode(f"/proc/self/fd/{descriptor}")
            if _libc.mount(source, os.fsencode(folder), None, bind, None) != 0:
                return False
        os.close(descriptor)
    return True


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
