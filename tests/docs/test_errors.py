"""docs/errors.md and contracts/errors.py say the same, and the code raises every number there is."""

import ast
import re
from pathlib import Path

from contracts.errors import SENTENCES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "consilium",
    "contracts",
    "dags",
    "durable",
    "models",
    "plugins",
    "privacy",
    "release",
    "site_runtime",
    "strategies",
    "tasks",
    "validation",
)
# Numbers that nothing raises: to be raised or removed, and none may join them.
RESERVED: set[str] = set()


def sections() -> dict[str, str]:
    """Heading of each section of the page, with its text."""
    parts = re.split(r"^### (.+)$", (ROOT / "docs" / "errors.md").read_text(), flags=re.MULTILINE)
    assert len(parts[1::2]) == len(set(parts[1::2]))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def numbers_in_code() -> dict[str, str]:
    """Error numbers that appear as texts of their own in the code, with one file where they do."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path == ROOT / "contracts" / "errors.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                value = node.value if isinstance(node, ast.Constant) else None
                if isinstance(value, str) and re.fullmatch(r"E\d{3}", value):
                    found[value] = str(path.relative_to(ROOT))
    return found


def test_every_number_has_its_section_in_order_and_there_is_no_other() -> None:
    assert list(sections()) == [f"{number} {SENTENCES[number][0]}" for number in sorted(SENTENCES)]


def test_every_section_quotes_its_sentence_and_says_cause_and_remedy() -> None:
    for heading, text in sections().items():
        sentence = SENTENCES[heading.split()[0]][1]
        assert f"\n> {sentence}\n" in text, heading
        for part in ("**Cause.** ", "**What to do.** "):
            assert re.search(re.escape(part) + r"\S.{5,}", text), (heading, part)


def test_the_code_raises_known_numbers_and_all_of_them() -> None:
    found = numbers_in_code()
    assert {n: path for n, path in found.items() if n not in SENTENCES} == {}
    assert set(SENTENCES) - set(found) == RESERVED


def test_names_and_sentences_are_distinct_and_speak_to_people() -> None:
    names = [name for name, _ in SENTENCES.values()]
    sentences = [sentence for _, sentence in SENTENCES.values()]
    assert len(set(names)) == len(names) and len(set(sentences)) == len(sentences)
    for name, sentence in SENTENCES.values():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name), name
        assert re.fullmatch(r"[A-Z].{10,100}\.", sentence), sentence


def test_the_links_of_the_documentation_lead_somewhere() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
