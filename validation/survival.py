"""How well a risk score orders patients by their time to an event, with censoring to the right.

`c_index` is Harrell's and depends on how long the patients were followed. `uno_c` and `time_dependent_auc`
weight each event by the inverse probability of still being followed (IPCW), which removes that where
censoring does not depend on the patient.

Conventions: a higher risk means an earlier event. Two patients can be compared when the one with the shorter
time had the event; at equal times when exactly one had it (the other lived longer); equal risks count half.
In the censoring distribution an event comes before a censoring at the same time.

All errors are the infinitesimal jackknife: the sum of squares of the derivative of the measure by each
patient's weight (Therneau & Atkinson, `survival::concordance`, do so for C). With IPCW it includes that the
weights are estimated (Blanche, Dartigues & Jacqmin-Gadda, Statistics in Medicine 32, 2013, give the same
representation for the AUC). Intervals are symmetric on the logit scale. Fewer than two patients on either
side have no error: the measure is then None.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.evaluation import Estimate
from validation.discrimination import rank_without_variance
from validation.proportion import NO_VARIANCE, logit_estimate

Floats = NDArray[np.float64]
Events = NDArray[np.int64]

_BLOCK = 2**22  # pairs compared at once: tens of megabytes


def c_index(risk: Floats, time: Floats, event: Events) -> Estimate | None:
    """Return Harrell's C: the share of comparable pairs that the risk orders rightly (JAMA 247, 1982).

    All pairs are compared, O(n^2): about 2 s with 20,000 patients. Where every pair is in order (or none)
    the interval is Wilson's with the events that have a partner as trials. None with fewer than two of these.

    Args:
        risk: float64 [patients], higher is an earlier event.
        time: float64 [patients], to the event or to the end of follow-up, any unit.
        event: int64 [patients], 1 event, 0 censored.
    """
    return _concordance(risk, time, event, np.ones(len(time)), None)


def uno_c(risk: Floats, time: Floats, event: Events, at: float) -> Estimate | None:
    """Return Uno's C over the events before `at`, with weights 1 / G(t-)^2 (Statistics in Medicine 30, 2011).

    G is the Kaplan-Meier estimate of still being followed, from these patients. Choose `at` where follow-up
    is still common: the weights grow as G falls. Without censoring it is Harrell's C. None: see `c_index`.

    Args:
        risk: float64 [patients], higher is an earlier event.
        time: float64 [patients].
        event: int64 [patients], 1 event, 0 censored.
        at: end of the window, in the unit of `time`; an event at it does not count.
    """
    followed = _follow_up(time, event)
    return _concordance(risk, time, event, (time < at) / followed.before**2, followed)


def time_dependent_auc(risk: Floats, time: Floats, event: Events, at: float) -> Estimate | None:
    """Return the cumulative/dynamic AUC: who had the event up to `at` against who had none by then.

    Cases are events at or before `at`, weighted by 1 / G(t-); controls have a time after `at`; those censored
    up to `at` enter through G only (Uno et al., JASA 102, 2007; Hung & Chiang, Canadian Journal of Statistics
    38, 2010). O(n log n). Where cases and controls are separated the interval is Wilson's with the smaller
    group as trials. None with fewer than two cases or controls.

    Args:
        risk: float64 [patients], higher is an earlier event.
        time: float64 [patients].
        event: int64 [patients], 1 event, 0 censored.
        at: the horizon, in the unit of `time`.
    """
    case, control = (event == 1) & (time <= at), time > at
    cases, controls = int(case.sum()), int(control.sum())
    if min(cases, controls) < 2:
        return None
    followed = _follow_up(time, event)
    weight = case / followed.before
    total = float(weight.sum())
    beaten = np.zeros(len(time))  # by each case: share of controls with a lower risk
    beaten[case] = _share_below(risk[case], risk[control], np.ones(controls)) / controls
    value = float(weight @ beaten / total)
    if not 1e-12 < value < 1 - 1e-12:
        return rank_without_variance(value, min(cases, controls))
    lost = np.zeros(len(time))  # by each control: weighted share of cases with a higher risk
    lost[control] = _share_below(-risk[control], -risk[case], weight[case]) / total
    excess = weight * (beaten - value) / total
    influence = excess + control * (lost - value) / controls - followed.derivative(excess)
    return _estimate(value, influence, min(cases, controls))


@dataclass(frozen=True)
class _FollowUp:
    """Kaplan-Meier estimate of being still followed, and how a patient's weight moves it.

    G(t) is the product over the censoring times s <= t of 1 - d(s) / Y(s), with d patients censored at s and
    Y still followed, those with an event at s left out.
    """

    time: Floats
    before: Floats  # G just before each patient's own time
    own: Floats  # 1 / (Y - d) at a censored patient's own time; 0 for an event and where Y = d
    hazard: Floats  # sum of d / (Y (Y - d)) over the censoring times up to a patient's own, which is included
    hazard_before: Floats  # the same, own time left out

    def derivative(self, amount: Floats) -> Floats:
        """Return, per patient k, the sum over i of amount[i] x d log G(T_i-) / d weight_k.

        d log G(t) / d w_k = sum over censoring times s <= min(t, T_k) of d / (Y (Y - d)), less 1 / (Y - d) at
        T_k if k is censored there and T_k <= t; an event at s has left Y already.
        """
        order = np.argsort(self.time, kind="stable")
        times = self.time[order]
        after = np.searchsorted(times, self.time, side="right")
        amounts = np.append(np.cumsum(amount[order][::-1])[::-1], 0.0)
        early = np.append(0.0, np.cumsum((amount * self.hazard_before)[order]))
        # T_i <= T_k: all s < T_i; T_i > T_k: all s <= T_k at which k was still in Y.
        moved: Floats = early[after] + amounts[after] * (self.hazard - self.own)
        return moved


def _follow_up(time: Floats, event: Events) -> _FollowUp:
    censored = event == 0
    moments, d = np.unique(time[censored], return_counts=True)
    ordered, events = np.sort(time), np.sort(time[~censored])
    left = np.searchsorted(ordered, moments, side="left")
    # Events at the same moment come first and are no longer followed when a patient is censored.
    tied = np.searchsorted(events, moments, side="right") - np.searchsorted(events, moments, side="left")
    y = (len(time) - left - tied).astype(np.float64)
    rest = y - d
    survival = np.append(1.0, np.cumprod(rest / y))
    # Only the last moment can leave nobody, and then no time lies after it.
    inverse = np.divide(1.0, rest, out=np.zeros_like(y), where=rest > 0)
    hazard = np.append(0.0, np.cumsum(d / y * inverse))
    before = np.searchsorted(moments, time, side="left")
    upto = before + (censored & np.isin(time, moments))
    own = np.where(censored, np.append(inverse, 0.0)[before], 0.0)
    return _FollowUp(time, survival[before], own, hazard[upto], hazard[before])


def _concordance(
    risk: Floats, time: Floats, event: Events, weight: Floats, followed: _FollowUp | None
) -> Estimate | None:
    """C with a weight on each pair, that of the patient who had the earlier event; in blocks of pairs."""
    n = len(time)
    right, pairs, right_of, pairs_of = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    earlier = np.flatnonzero((event == 1) & (weight > 0))
    step = max(1, _BLOCK // max(n, 1))
    for start in range(0, len(earlier), step):
        i = earlier[start : start + step]
        comparable = (time > time[i, None]) | ((time == time[i, None]) & (event == 0))
        ordered = np.where(risk[i, None] > risk, 1.0, np.where(risk[i, None] == risk, 0.5, 0.0)) * comparable
        right[i], pairs[i] = ordered.sum(axis=1), comparable.sum(axis=1)
        right_of += weight[i] @ ordered
        pairs_of += weight[i] @ comparable
    partnered = int((pairs > 0).sum())
    if partnered < 2:
        return None
    total = float(weight @ pairs)
    value = float(weight @ right / total)
    if not 1e-12 < value < 1 - 1e-12:
        return rank_without_variance(value, partnered)
    excess = weight * (right - value * pairs) / total
    influence = excess + (right_of - value * pairs_of) / total
    if followed is not None:
        influence = influence - 2 * followed.derivative(excess)
    return _estimate(value, influence, partnered)


def _share_below(score: Floats, others: Floats, weight: Floats) -> Floats:
    """Weight of the others with a lower score, half of it at a tie: float64 [score]."""
    order = np.argsort(others, kind="stable")
    cumulative = np.append(0.0, np.cumsum(weight[order]))
    lower = np.searchsorted(others[order], score, side="left")
    upper = np.searchsorted(others[order], score, side="right")
    share: Floats = (cumulative[lower] + cumulative[upper]) / 2
    return share


def _estimate(value: float, influence: Floats, trials: int) -> Estimate:
    variance = float(influence @ influence)
    if variance < NO_VARIANCE:
        return rank_without_variance(value, trials)
    return logit_estimate(value, math.sqrt(variance))
