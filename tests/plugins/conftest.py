"""These tests import Airflow."""

from tests import airflow_home  # noqa: F401  sets the environment
