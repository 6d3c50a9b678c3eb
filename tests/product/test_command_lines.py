"""Every example and benchmark has `--help` and refuses unknown options, and the pages that list them are complete."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "tests/README.md", "benchmarks/README.md", "examples/README.md")
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
SERVER = "commit_server"  # started by `benchmarks.commits`, for an earlier version of the library
FILES = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if "__main__" in path.read_text()]
RUN = [".".join(path.relative_to(ROOT / "benchmarks").with_suffix("").parts) for path in FILES]
NEED_TORCH = {"gpu", "matrix_state_peers", *(name for name in RUN if name.startswith("oracles."))}
BENCHMARKS = sorted({*RUN} - NEED_TORCH - {SERVER})

REQUIRED = {"benchmarks.commits": ["HEAD"], "benchmarks.curves": ["long_memory", "--json", "records.json"]}


def parsed(monkeypatch, capsys, module, *words):
    """The exit status of a program, and its output."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *words])
    with pytest.raises(SystemExit) as ended:
        (module.parse if hasattr(module, "parse") else module.main)()
    return ended.value.code, "".join(capsys.readouterr())


@pytest.mark.parametrize("name", [*EXAMPLES, *(f"benchmarks.{name}" for name in BENCHMARKS)])
def test_help_is_printed_and_an_unknown_option_is_an_error(monkeypatch, capsys, name):
    module = import_module(name)
    status, printed = parsed(monkeypatch, capsys, module, "--help")
    assert status == 0
    assert module.__doc__.strip() in printed
    status, printed = parsed(monkeypatch, capsys, module, *REQUIRED.get(name, ()), "--no-such-option")
    assert status == 2
    assert "--no-such-option" in printed


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_usage_of_an_example_names_its_file(name):
    used = re.findall(r"examples/(\w+)\.py", import_module(name).__doc__)
    assert set(used) <= {name}


def test_the_pages_list_every_example_and_every_benchmark():
    listed = set(re.findall(r"^\| \[`(\w+)\.py`\]", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE))
    assert listed == set(EXAMPLES)
    table = (ROOT / "benchmarks" / "README.md").read_text().partition("\n## ")[0]
    assert set(re.findall(r"python -m benchmarks\.(\w+(?:\.\w+)*)", table)) == {*RUN} - {SERVER}


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_can_be_run(page):
    text = re.sub(r"\s+", " ", (ROOT / page).read_text())
    assert set(re.findall(r"python -m benchmarks\.([a-z_]+(?:\.[a-z_]+)*)", text)) <= {*RUN}
    assert set(re.findall(r"python examples/([a-z_0-9]+)\.py", text)) <= {*EXAMPLES}
    assert "python benchmarks/" not in text


@pytest.mark.skipif((ROOT / "PKG-INFO").is_file(), reason="a source distribution is without the records of benchmarks")
@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\((?!https:)([^)\s]+)\)", (ROOT / page).read_text()):
        file, _, heading = link.partition("#")
        target = (ROOT / page).parent / file
        assert target.exists(), link
        if heading:
            lines = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert heading in {line.lower().replace(" ", "-") for line in lines}, link
