"""Warming a worker imports and does nothing else: no thread may exist before it forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import os, sys
from consilium.site_worker import BELOW_AIRFLOW
from site_runtime.warm import WARM, warm
missing = warm([*WARM, *BELOW_AIRFLOW])
assert not missing, missing
assert "torch" in sys.modules and "great_expectations" in sys.modules
threads = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print(threads)
import torch
assert not torch.cuda.is_initialized()
assert len(threads) == 1, threads
pid = os.fork()
if pid == 0:
    # A fit in the child: it would hang for ever had the parent started a thread pool.
    layer = torch.nn.Linear(512, 512)
    layer(torch.ones(512, 512)).sum().backward()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.slow
def test_the_parent_of_warm_tasks_has_one_thread() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
