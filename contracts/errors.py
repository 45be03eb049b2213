"""The numbered refusals of the project: one sentence each, written for a hospital's data manager.

`docs/errors.md` says what causes each and what to do; a test keeps the two in step.
"""

from __future__ import annotations

SENTENCES: dict[str, tuple[str, str]] = {
    # number: (name, sentence)
    "E101": ("study-invalid", "The study file does not describe a valid study."),
    "E102": ("study-unknown", "No study of this name is known here."),
    "E103": ("site-config-invalid", "The site file does not describe a valid site."),
    "E104": ("already-running", "Consilium is already up in this home."),
    "E105": ("not-running", "Nothing is up in this home."),
    "E106": ("port-in-use", "The port is used by another program."),
    "E107": ("federation-invalid", "The folder holds no federation of sites, or what must not be replaced."),
    "E108": ("data-unavailable", "The data set is not here and could not be fetched or verified."),
    "E109": ("start-failed", "A part of Consilium did not start."),
    "E110": ("extra-missing", "This command needs a part of Consilium that is not installed here."),
    "E111": ("amendment-refused", "The study may not amend the one that it names."),
    "E112": ("settings-invalid", "The coordinator's settings file does not describe valid settings."),
    "E201": ("source-unreadable", "The site's data source could not be read."),
    "E202": ("column-missing", "The source lacks a column that the study needs."),
    "E203": ("value-not-numeric", "A column that must hold numbers holds something else."),
    "E204": ("quality-blocked", "The cohort failed a blocking data-quality check."),
    "E205": ("cohort-too-small", "The cohort is too small for this study."),
    "E206": ("duplicate-records", "The same record of a patient appears more than once."),
    "E207": ("holdout-empty", "The holdout is too small for this study."),
    "E208": ("one-class-only", "The cohort holds one class of the label only."),
    "E209": ("unit-out-of-range", "A feature's values do not fit its declared unit and range."),
    "E210": ("cohort-changed", "The cohort is not the one that was frozen at intake."),
    "E211": ("cohort-missing", "No cohort was frozen for this study: run intake first."),
    "E212": ("time-after-prediction", "A value was recorded after the prediction time."),
    "E301": ("study-not-approved", "This hospital has not approved this version of the study."),
    "E302": ("site-paused", "This hospital has paused its part in the study."),
    "E303": ("site-withdrawn", "This hospital has withdrawn from the study."),
    "E304": ("egress-refused", "What would have left the hospital does not fit its policy."),
    "E305": ("code-not-accepted", "This hospital's code version is not one the plan accepts."),
    "E306": ("not-on-roster", "This hospital is not on the roster of the plan."),
    "E401": ("budget-exceeded", "The privacy budget of this hospital would be exceeded."),
    "E402": ("ledger-unusable", "The privacy ledger cannot be read, verified or locked."),
    "E403": ("delta-too-large", "The study's delta is not below one over the declared size."),
    "E404": ("batchnorm-refused", "The model couples patients (batch normalisation) and cannot be private."),
    "E405": ("seed-configured", "A seed is configured, so no privacy claim may be made."),
    "E406": ("strategy-without-dp", "The strategy cannot keep the privacy that the study promises."),
    "E407": ("ledger-rolled-back", "The privacy ledger is older than the one the coordinator has seen."),
    "E408": ("accountants-disagree", "The privacy accountants disagree, so no epsilon is stated."),
    "E409": ("calibration-impossible", "No noise level within reach meets the privacy target."),
    "E410": ("noise-too-small", "The plan's noise is below what the study's privacy target needs."),
    "E411": ("reservation-mismatch", "The plan was reserved before with another noise or number of steps."),
    "E412": ("compute-not-private", "The site's devices or precision would break the privacy mechanism."),
    "E413": ("patients-unbounded", "The source does not say which records belong to one patient."),
    "E414": ("sampler-not-poisson", "The study samples patients in a way that its privacy does not cover."),
    "E415": ("normaliser-from-data", "The study would divide by a number that was counted from the data."),
    "E417": (
        "ledger-decision-refused",
        "A decision about the privacy ledger is incomplete or does not apply.",
    ),
    "E418": ("excerpt-refused", "The excerpt of a privacy ledger is too large, cut off or opens too much."),
    "E420": ("audit-refuted", "An attack learned more about patients than the mechanism claims to allow."),
    "E421": ("audit-missed", "The audit did not find the fault that was put into the mechanism."),
    "E422": ("no-privacy-claim", "The study makes no privacy claim that could be planned or tested."),
    "E423": ("federation-budget-invalid", "The file with the federation's privacy budget cannot be used."),
    "E424": (
        "noise-key-missing",
        "The coordinator's noise key is gone, so private rounds cannot be repeated.",
    ),
    "E425": ("hospital-delta-too-large", "The study's delta is not below one over the number of hospitals."),
    "E426": ("threshold-not-locked", "The decision threshold is not the one that was locked after training."),
    "E427": ("threshold-undecided", "The training histogram cannot decide the decision threshold."),
    "E430": ("sum-without-room", "The weights and bounds of the roster leave no room for an exact sum."),
    "E431": ("value-beyond-bound", "The update holds a value that cannot be encoded for a secure sum."),
    "E432": ("mask-refused", "The roster, keys or lists of a secure sum are not ones to take part in."),
    "E433": ("shares-unreadable", "Another hospital's shares of its masks cannot be opened here."),
    "E434": ("masks-not-opened", "The masks of a secure sum cannot be taken off, so the round is lost."),
    "E501": ("update-malformed", "The update's tensors do not have the expected names, shapes or types."),
    "E502": ("update-not-finite", "The update holds a value that is not a finite number."),
    "E503": ("update-wrong-base", "The update was not trained from this round's model."),
    "E504": ("update-wrong-plan", "The update answers another plan than this round's."),
    "E505": ("update-norm", "The update is larger than this study's training can produce."),
    "E506": ("quorum-missed", "Too few hospitals delivered an update."),
    "E507": ("head-moved", "The study moved on while this task ran."),
    "E508": ("round-closed", "This round is closed."),
    "E509": ("update-missing", "The update's tensors are not in the exchange."),
    "E510": ("replay-mismatch", "Recomputing a round gave another digest than its record."),
    "E511": ("sheet-refused", "The hospital's data sheet does not fit the study."),
    "E601": ("gate-failed", "The model did not pass an acceptance gate."),
    "E602": ("gate-not-testable", "An acceptance gate could not be decided on the data there is."),
    "E603": ("parity-failed", "The exported model does not agree with the trained one."),
    "E604": ("evaluation-impossible", "The model could not be evaluated on this hospital's holdout."),
    "E605": ("evaluation-repeated", "This hospital has evaluated another model for this study already."),
    "E606": ("performance-sealed", "What must hold before performance may be seen does not hold."),
    "E607": ("too-many-hospitals", "More hospitals take part than the study's privacy was planned for."),
    "E701": ("release-modified", "A file of the release is not the one that was signed."),
    "E702": ("release-signature", "The release is not signed by the key you trust."),
    "E703": ("release-incomplete", "The release lacks a file or holds one that its manifest does not name."),
    "E704": ("approval-missing", "The release candidate was not approved."),
    "E705": ("approval-mismatch", "The approval is for another candidate."),
    "E706": ("not-finished", "The study has no finished model to release."),
    "E707": ("release-exists", "A release of this version exists and is never overwritten."),
    "E708": ("registry-failed", "The registry of releases could not be written."),
    "E709": ("approver-not-allowed", "The person who answered may not approve this candidate."),
    "E710": ("change-not-planned", "The change is a major one that the change control plan does not name."),
    "E711": ("conformance-incomplete", "The release's conformance matrix has a gap or points nowhere."),
    "E712": ("events-broken", "The log of the study's events is not the one that was written."),
    "E713": ("schema-invalid", "A bill of materials in the release does not fit its schema."),
    "E714": ("regulatory-status", "Nobody signed the regulatory status that the release states."),
    "E715": ("evidence-invalid", "Evidence that was brought to the coordinator cannot be used."),
    "E801": ("key-unreadable", "A key file is missing or damaged."),
    "E802": ("document-malformed", "A document is not of the agreed form."),
    "E803": ("signature-invalid", "A document is not signed by the party it must come from."),
    "E804": ("exchange-refused", "The exchange refused the transfer."),
    "E805": ("exchange-unreachable", "The coordinator's exchange could not be reached."),
    "E806": ("not-enrolled", "This site is not enrolled in the federation."),
    "E807": ("peer-not-pinned", "Another hospital's key was not confirmed at this hospital."),
    "E820": ("exchange-url-invalid", "The address of the exchange's bucket cannot be used on this machine."),
    "E821": ("disk-full", "The disk is too full for the transfer."),
    "E899": ("internal", "The task failed inside the hospital; its own log says why."),
}


class ConsiliumError(Exception):
    """A numbered refusal with a detail for whoever stands at the machine where it arose.

    The detail may name local values; it never crosses the boundary (`Refusal` carries the number alone).

    Args:
        number: a key of `SENTENCES`.
        detail: field, value and what was expected.
    """

    def __init__(self, number: str, detail: str = "") -> None:
        self.number = number
        self.name, self.sentence = SENTENCES[number]
        self.detail = detail
        super().__init__(f"{number} {self.name}: {self.sentence}" + (f" {detail}" if detail else ""))
