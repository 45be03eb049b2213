"""Thin Airflow files: which task runs where and after what. The work is in `tasks` and `site_runtime`."""
