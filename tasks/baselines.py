"""Earlier releases of the product as baselines: the hospitals compare the new model with them."""

from __future__ import annotations

from typing import Literal

from contracts.study import StudyProtocol
from tasks.exchange import DirectoryExchange
from tasks.home import CoordinatorHome
from tasks.versions import earlier, previous_release


def baselines_of(home: CoordinatorHome, protocol: StudyProtocol) -> dict[Literal["previous", "first"], str]:
    """Put the ONNX files of the product's previous and first release into the exchange.

    `previous` is the release that is current, which the new one would replace; `first` the product's first,
    which all later ones are measured by, so that many small losses do not add up unseen. Both are the same
    file for a product's second release. Hospitals run them on the patients held out from all releases.

    Returns:
        their digests by name; empty for a product's first release.
    """
    previous = previous_release(home, protocol)
    if previous is None:
        return {}
    exchange = DirectoryExchange(home.exchange)
    return {
        "previous": exchange.put(previous.path / "model.onnx"),
        "first": exchange.put(earlier(home, protocol)[0].path / "model.onnx"),
    }
