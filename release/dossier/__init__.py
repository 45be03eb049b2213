"""The documents of a release that people and authorities read, made from facts and from the study's YAML.

`assemble.dossier_files` gives them all. A document never invents: what a person has not written stands there
as open, with what is missing and who must write it (`pointers`), and `conformance` counts it.
"""
