"""The release directory: export, dossier, signature, registry and offline verification.

- Its content: `facts` (all that it is made from), `contents` (its files), `directory` (written and sealed),
  `golden` and `export` (the model), `dossier/`, `dp_statement*` and `ledgers`, `events`.
- Its page: `report`, `statements`, `glossary`, `numbers`, `markup`; drawings: `forest`, `panels`.
- The privacy statement's drawing: `epsilon_figure`, in the style of `figures`.
- Its trust: `signature`, `rotation`, `verify/`, `session`.
- Among others: `registry`, `versioning`, `compare`.

A light room: importing any module here loads no torch, Airflow, DVC, onnx or matplotlib; `export` needs torch
and onnx when called, `session` onnxruntime, `report` matplotlib and jinja2.
"""
