"""The release directory: export, dossier, signature, registry and offline verification.

A light room: importing any module here loads no torch, Airflow, DVC, onnx or matplotlib; `export` needs torch
and onnx when called, `session` onnxruntime, `report` matplotlib and jinja2.
"""
