"""The ledger that a hospital shows with its evaluation: whole, its own, and no cheaper than its updates."""

from __future__ import annotations

import json
import warnings

import pytest

from consilium.simulation import RUN, ask, run_rounds
from contracts.canonical import sha256
from contracts.errors import ConsiliumError
from contracts.evaluation import EvaluationReport, SealedReport
from contracts.sealing import seal
from contracts.signing import SigningKey, parse_signed, to_text
from site_runtime.steps import evaluate
from tasks.evaluation import judge, open_evaluation
from tasks.exchange import DirectoryExchange
from tasks.ledgers import check_ledger, excerpt_bytes
from tasks.sealed import seal_key
from tests.factories import private_study, tiny_rows, tiny_simulation, tiny_study

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A finished private federation and each hospital's report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulation = tiny_simulation(tmp_path_factory.mktemp("shown"), private_study(), tiny_rows(160))
        run_rounds(simulation, lambda text: None)
    opened = open_evaluation(simulation.coordinator, "tiny", RUN, set(simulation.sites))
    exchange = DirectoryExchange(simulation.coordinator.exchange)
    answers = {s: ask(evaluate, home, opened.plan, exchange) for s, home in simulation.sites.items()}
    reports = {s: opened_report(simulation, answer) for s, answer in answers.items()}
    return simulation, reports, answers


def opened_report(simulation, answer: str) -> EvaluationReport:
    """The report inside a hospital's sealed answer."""
    sealed = SealedReport.model_validate(parse_signed(answer).document)
    text = seal_key(simulation.coordinator).open(sealed.sealed, sealed.plan)
    return EvaluationReport.model_validate(parse_signed(text).document)


def sealed_again(simulation, answer: str, report: EvaluationReport) -> str:
    """The hospital's answer with another report inside, signed and sealed anew."""
    sealed = SealedReport.model_validate(parse_signed(answer).document)
    key = SigningKey.load(report.site, simulation.sites[report.site].signing_key)
    inner = seal(to_text(key.sign(report)), seal_key(simulation.coordinator).public, sealed.plan)
    return to_text(key.sign(sealed.model_copy(update={"sealed": inner})))


def put(simulation, tmp_path, data: bytes) -> str:
    """Lay an excerpt into the exchange, as a hospital could."""
    (tmp_path / "excerpt").write_bytes(data)
    DirectoryExchange(simulation.coordinator.exchange).put(tmp_path / "excerpt")
    return sha256(data)


def refusal(simulation, report) -> str:
    with pytest.raises(ConsiliumError) as error:
        check_ledger(simulation.coordinator, simulation.protocol, report)
    return error.value.number


def test_what_the_ledger_shows_is_what_the_report_states(evaluated):
    simulation, reports, _ = evaluated
    for site, report in reports.items():
        found = check_ledger(simulation.coordinator, simulation.protocol, report)
        assert found.site == site and found.head == report.ledger_head
        # Round 0 and two rounds, each reserved under its plan and committed.
        assert [r.purpose for r in found.reservations] == ["statistics", "training", "training"]
        assert all(r.committed for r in found.reservations)


def test_a_report_without_its_ledger_or_with_another_epsilon_is_refused(evaluated):
    simulation, reports, _ = evaluated
    report = reports["ash"]
    assert refusal(simulation, report.model_copy(update={"ledger": None})) == "E408"
    assert (
        refusal(simulation, report.model_copy(update={"epsilon_study": report.epsilon_study - 0.1})) == "E408"
    )
    assert refusal(simulation, report.model_copy(update={"epsilon_lineage": None})) == "E408"
    assert refusal(simulation, report.model_copy(update={"ledger": "0" * 64})) == "E509"


def test_a_shorter_or_a_foreign_ledger_is_refused(evaluated, tmp_path):
    simulation, reports, _ = evaluated
    report = reports["ash"]
    lines = excerpt_bytes(simulation.coordinator, report).splitlines(keepends=True)
    shorter = put(simulation, tmp_path, b"".join(lines[:-2]))
    assert refusal(simulation, report.model_copy(update={"ledger": shorter})) == "E407"
    head = check_ledger(simulation.coordinator, simulation.protocol, report).heads[len(lines) - 3]
    older = {"ledger": shorter, "ledger_head": head}
    assert refusal(simulation, report.model_copy(update=older)) == "E407"  # a later head was seen
    foreign = {"ledger": reports["birch"].ledger}
    assert refusal(simulation, report.model_copy(update=foreign)) == "E402"


def test_a_reservation_that_is_not_opened_is_missed(evaluated, tmp_path):
    simulation, reports, _ = evaluated
    report = reports["ash"]
    lines = excerpt_bytes(simulation.coordinator, report).splitlines(keepends=True)
    for number, line in enumerate(lines):
        entry = json.loads(line)
        if entry["entry"]["document"]["kind"] == "reserve":
            entry.pop("opening")
            hidden = [*lines[:number], json.dumps(entry).encode() + b"\n", *lines[number + 1 :]]
            digest = put(simulation, tmp_path, b"".join(hidden))
            assert refusal(simulation, report.model_copy(update={"ledger": digest})) in ("E402", "E408")


def test_a_false_account_refuses_its_hospital_and_says_why(evaluated):
    simulation, reports, answers = evaluated
    false = sealed_again(simulation, answers["ash"], reports["ash"].model_copy(update={"epsilon_study": 0.1}))
    with pytest.raises(ConsiliumError, match=r"E506.*refused: ash \(E408"):
        judge(simulation.coordinator, "tiny", RUN, answers | {"ash": false})
    assert judge(simulation.coordinator, "tiny", RUN, answers) == []  # the tiny study has no gates
    # Of a study without privacy no ledger is asked.
    plain = reports["ash"].model_copy(update={"ledger": None, "epsilon_study": None})
    assert check_ledger(simulation.coordinator, tiny_study(), plain) is None
