"""How updates are combined: the federated algorithm, and what stands between one hospital and the model.

`aggregation` is either secure (the coordinator sees a sum and no update) or robust (it looks at every
update and bounds what one hospital can do). It is never both: whoever sees only a sum cannot tell whose part
of it is too large, and whoever weighs single updates has seen them. A protocol chooses what it fears more.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.fields import Contract, Positive

MAX_SECURE_SITES = 64  # shares grow with the square of the roster; so many fit their documents


class Mean(Contract):
    """The weighted mean of the updates as they were admitted."""

    method: Literal["mean"]


class NormBound(Contract):
    """The weighted mean, after every update that stands out is scaled down (Sun et al. 2019,
    arXiv:1911.07963).

    A norm is measured against what honest training of that hospital can reach (the bound of its admission),
    and held to `factor` times the median of these ratios. Up to two hospitals have no median to stand out of.
    """

    method: Literal["norm_bound"] = "norm_bound"
    factor: Positive = 3.0


class Median(Contract):
    """The median of every coordinate (Yin et al. 2018, arXiv:1803.01498, option I). Weights play no part."""

    method: Literal["median"]


class TrimmedMean(Contract):
    """The mean of every coordinate without its `trim` lowest and highest values (Yin et al. 2018, option II).

    Weights play no part.
    """

    method: Literal["trimmed_mean"]
    trim: Annotated[int, Field(ge=1, le=100)] = 1  # hospitals left out at each end


class Krum(Contract):
    """Multi-Krum (Blanchard et al. 2017, arXiv:1703.02757): the mean of the `keep` updates that lie closest
    to the others, when up to `malicious` hospitals may send anything."""

    method: Literal["krum"]
    malicious: Annotated[int, Field(ge=1, le=100)] = 1
    keep: Annotated[int, Field(ge=1, le=1000)] = 1


class Secure(Contract):
    """Secure aggregation (Bonawitz et al. 2017, doi:10.1145/3133956.3133982): the coordinator sees the sum.

    `threshold` is the share of the roster that must answer both hops, and the number of shares that open a
    mask: above one half, so that no two disjoint groups can open two different sums.
    """

    method: Literal["secure"]
    threshold: Annotated[float, Field(gt=0.5, le=1)] = 0.7


Aggregation = Annotated[
    Mean | NormBound | Median | TrimmedMean | Krum | Secure, Field(discriminator="method")
]


class Strategy(Contract):
    """A federated algorithm with the settings of its coordinator half."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,31}$")] = "fedavg"
    weights: Literal["declared", "equal"] = "declared"  # declared: by the sizes the sites declared
    aggregation: Aggregation = NormBound()
    server_learning_rate: Positive = 1.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Positive = 1e-3
