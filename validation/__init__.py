"""Clinical performance at a hospital, its pooling over hospitals, and the gates that decide a release.

Pure functions of numbers and contract types; numpy and scipy only. `discrimination`, `calibration` and
`proportion` hold one measure each, `subgroups` says which counts may leave, `performance.evaluate` is what a
site calls, `pooling` and `gates` are what the coordinator calls.
"""
