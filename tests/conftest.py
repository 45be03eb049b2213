"""What holds for every test."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """What Airflow will remove is an error, where tests run.

    To know the warning, Airflow is imported (5 s), which a process that only hands tests out need not do.
    """
    hands_out = getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")
    if not hands_out:
        config.addinivalue_line("filterwarnings", "error::airflow.exceptions.RemovedInAirflow4Warning")
