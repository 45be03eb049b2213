"""Round 0: federated normalisation, as one bounded sum over patients (design section 5).

The site's half maps each patient to a bounded vector and sends the sum, noised once when the study is
private; the coordinator's half turns the total into the `center` and `scale` of the first global model.
"""

from __future__ import annotations
