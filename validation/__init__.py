"""Clinical performance at a hospital, its pooling over hospitals, and the gates that decide a release.

Pure functions of numbers and contract types; numpy and scipy only. What a site calls is
`performance.evaluate` and `baselines.compare`; what the coordinator calls is `diagnostics`, `pooling`,
`gates` and `tightening` (an amended protocol's gates).

- Measures: `discrimination`, `calibration`, `operating_point`, `decision_curve`, `multiclass`, `survival`,
  `histograms` (the same from secure-summed or noised histograms), on the intervals of `proportion`.
- What may leave: `disclosure` (its rules are at its head), `subgroups`.
- Beside others: `reference` (a published score), `comparison` (paired differences).
- Over hospitals: `effect_scale`, `meta_analysis`, `differences`, `subgroup_gap`, `non_inferiority`.
- Of gates: `asked` (the number a gate asks for), `limits` (how far it is from its limit).
"""
