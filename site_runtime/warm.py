"""Heavy imports made once in the worker, before it forks a process for each task (design section 6).

Imports only: one tensor operation before the fork starts a thread pool whose locks the child inherits
without its threads, and the child's first fit then hangs for ever. A test counts the threads.
onnxruntime is left out: importing it starts a thread, and costs a task .1 s only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence

WARM: Sequence[str] = (
    "numpy",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "torch",
    "pytorch_lightning",
    "opacus",
    "safetensors.torch",
    "great_expectations",
    "httpx",
    "jwt",
    "pandas.core.arrays.arrow.extension_types",  # what reading Parquet into pandas imports at first use
    "pyarrow.dataset",
    "site_runtime.cohort",
    "site_runtime.evaluator",
    "site_runtime.intake",
    "site_runtime.steps",
    "site_runtime.training",
    "validation.performance",
)


def single_threaded() -> None:
    """Ask the numerical libraries not to start threads of their own while they are imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")


def warm(modules: Sequence[str] = WARM) -> list[str]:
    """Import `modules`; return those that are not installed, which their tasks will report themselves."""
    single_threaded()
    missing = []
    for name in modules:
        try:
            with contextlib.suppress(AttributeError):
                importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing
