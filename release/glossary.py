"""The metrics in words for clinicians, and how each number was made for whoever checks it."""

from __future__ import annotations

WORDS: tuple[tuple[str, str], ...] = (
    (
        "AUROC",
        "The chance that a patient with the outcome gets a higher risk than one without. 0.5 is a "
        "coin, 1 is perfect. It does not say whether the risks themselves are right.",
    ),
    (
        "AUPRC",
        "How rare false alerts are over all thresholds. Compare it with the share of patients who "
        "have the outcome, which is what guessing reaches.",
    ),
    (
        "95 % interval",
        "What else the data are compatible with. Few patients, wide interval.",
    ),
    (
        "Prediction interval",
        "Where the value is expected at a hospital that took no part. It is wider than the interval "
        "of the pooled value, since hospitals differ.",
    ),
    (
        "Sensitivity",
        "Of the patients with the outcome, how many raise an alert.",
    ),
    (
        "Specificity",
        "Of the patients without the outcome, how many raise none.",
    ),
    (
        "PPV",
        "Of the alerts, how many are right. It falls where the outcome is rarer.",
    ),
    (
        "NPV",
        "Of the patients without an alert, how many stay free of the outcome.",
    ),
    (
        "O:E",
        "Events that happened, divided by the events that the model predicted. 1 is perfect, above 1 "
        "the model predicts too little risk.",
    ),
    (
        "Calibration slope",
        "1 is perfect. Below 1 the risks are too extreme, above 1 too timid.",
    ),
    (
        "Calibration intercept",
        "0 is perfect. Above 0 the model predicts too little risk on the whole.",
    ),
    (
        "ECE",
        "How far predicted and observed risk lie apart on average, over bins of risk.",
    ),
    (
        "Brier score",
        "Mean squared error of the risk. 0 is perfect.",
    ),
    (
        "Net benefit",
        "True alerts per patient, less needless alerts at the price that the threshold sets. A model "
        "is worth using where it lies above both treating everybody and treating nobody.",
    ),
    (
        "I²",
        "The share of the variation between hospitals that is more than chance.",
    ),
    (
        "At worst",
        "Too few patients stand behind the number (such as few missed outcomes), so the hospital tells "
        "only a range. Shown is the worst of it, and the interval covers all of it.",
    ),
    (
        "Withheld",
        "Too few patients in a class to be shown without pointing at a person.",
    ),
    (
        "Small counts",
        "Where fewer patients than the smallest count that may be shown were missed or wrongly alerted, the "
        "worst possible count is used. Sensitivity and net benefit are then too low, never too high; the "
        "interval covers what is possible.",
    ),
    (
        "Not testable",
        "The data cannot decide. It stops a release as a failure does.",
    ),
)

METHOD: dict[str, str] = {
    "auroc": "DeLong 1988 at each hospital; pooled: random effects on the logit",
    "auprc": "average precision at each hospital",
    "at_worst": (
        "a count under the minimum cell (such as few missed events) leaves a hospital as a range: the "
        "value is the worst of it (fewest right decisions; the most alerts), the interval covers all of "
        "it"
    ),
    "accuracy": (
        "share of right decisions at the locked threshold; Wilson 1927; pooled: right decisions of all "
        "patients, at worst where a hospital's are"
    ),
    "sensitivity": "at the locked threshold; Wilson 1927",
    "specificity": "at the locked threshold; Wilson 1927",
    "ppv": "at the locked threshold; Wilson 1927; at the prevalence of these patients",
    "npv": "at the locked threshold; Wilson 1927; at the prevalence of these patients",
    "alert_rate": "alerts per patient at the locked threshold; Wilson 1927",
    "brier": "mean squared error of the probability",
    "ece": "expected calibration error over bins of risk",
    "calibration_slope": "logistic recalibration, slope; Cox 1958",
    "calibration_intercept": "logistic recalibration with slope 1; Cox 1958",
    "observed_expected": "observed by expected events; pooled on the log scale",
    "net_benefit": "Vickers and Elkin 2006; advantage over the better of treating all and treating none, "
    "at the locked threshold; pooled: mean over patients, each hospital against its own better one",
    "comparisons": (
        "on the same holdout patients, model minus baseline; AUROC (DeLong 1988) and Brier score paired; "
        "net benefit as the difference of the two values, with the sum of their errors; pooled: random "
        "effects"
    ),
    "roc": "from merged bins of risk, each of at least the minimum cell in either class",
    "calibration": "merged bins of risk, each of at least the minimum cell in either class",
    "pooled": (
        "accuracy: of all patients; Brier score, ECE and net benefit: mean over patients; else random "
        "effects over hospitals, on the logit (AUROC, AUPRC and rates), log (observed by expected) or own "
        "scale"
    ),
    "heterogeneity": (
        "random effects over hospitals. From 10 of them: tau2 of Paule and Mandel 1982, interval of "
        "Hartung and Knapp 2001 with its scale not below 1, new_site by Student's t (Higgins 2009). Below "
        "that: a half-normal prior on tau (`prior` names it), integrated over tau (Roever 2020). "
        "new_site: 95 % prediction interval for a new hospital. i2: Higgins and Thompson 2002"
    ),
}
