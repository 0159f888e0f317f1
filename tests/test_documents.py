"""The documents: their links and anchors resolve, their Python compiles, their commands and options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pie_engine.cli.main import main
from pie_engine.cli.options import options_of
from pie_engine.cli.reference import SECTIONS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def prose(path: Path) -> str:
    """The text without its code."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$|`[^`\n]*`", "", text, flags=re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_and_anchors_resolve(name: str) -> None:
    path = ROOT / name
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_every_document_and_picture_is_linked() -> None:
    linked = set()
    for path in DOCUMENTS:
        links = re.findall(r"\]\(([^)\s#]+)", path.read_text(encoding="utf-8"))
        linked |= {(path.parent / link).resolve() for link in links if "://" not in link}
    files = {path for path in (ROOT / "docs").rglob("*") if path.is_file()}
    assert {path.relative_to(ROOT).as_posix() for path in files - linked} == set()


def test_the_readme_is_two_screens() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text) <= 8000 and text.count("\n") <= 100


@pytest.mark.parametrize("name", NAMES)
def test_python_compiles(name: str) -> None:
    for code in re.findall(
        r"^```python\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        compile(code, name, "exec")


def test_commands_and_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Commands as they stand in code, with the options that follow them."""
    helps: dict[str, str] = {}
    wrong = []
    for path, name in zip(DOCUMENTS, NAMES, strict=True):
        text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
        code = re.findall(r"^ {4}(.*)$|`([^`\n]+)`", text, re.MULTILINE)
        for line in (block or inline for block, inline in code):
            for found in re.finditer(r"pie-engine ([a-z]+)((?:(?!pie-engine|[;|>&]| {3,}).)*)", line):
                command = found[1]
                if command not in helps:
                    with pytest.raises(SystemExit) as ended:
                        main([command, "--help"])
                    helps[command] = capsys.readouterr().out if ended.value.code == 0 else ""
                options = re.findall(r"(?<![\w-])--[a-z][\w-]*", found[2])
                known = set(re.findall(r"--[a-z][\w-]*", helps[command]))
                wrong += [f"{name}: {command} {option}" for option in options if option not in known]
                wrong += [] if helps[command] else [f"{name}: {command}"]
    assert wrong == []


def test_options_that_are_named_alone_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """An option in a sentence belongs to some command."""
    known = {option for cls in SECTIONS for option in options_of(cls).values()}
    known |= {option.replace("--", "--no-", 1) for option in known}
    with pytest.raises(SystemExit):
        main(["--help"])
    for command in re.findall(r"^ {4}([a-z]+) ", capsys.readouterr().out, re.MULTILINE):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    named = {
        word
        for path in DOCUMENTS
        for code in re.findall(r"`(--[^`\n]+)`", path.read_text(encoding="utf-8"))
        for word in code.split()
        if re.fullmatch(r"--[a-z][a-z0-9-]*", word)  # the published script's spellings have underscores
    }
    assert named - known - {"--check", "--index-url", "--model"} == set()
