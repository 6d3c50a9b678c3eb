"""The files of a public project: they exist, agree on version and licence, and link to files that exist."""

import os
import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rnnjax

ROOT = Path(__file__).parents[2]
NATIVE = "rnnjax/kernels/native"


def found(pattern: str, file: str) -> str:
    """The group of the first match of `pattern` in a file of the project."""
    match = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert match, f"{file}: expected a line that matches {pattern}, found none"
    return match[1]


def project() -> dict[str, Any]:
    """The metadata in pyproject.toml, from which every distribution gets its own."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_package_is_typed():
    assert Path(rnnjax.__file__).with_name("py.typed").is_file()
    assert "Typing :: Typed" in project()["classifiers"]


def test_public_names():
    """So few that a user finds what is there; the rest is in the namespaces."""
    assert len([name for name in dir(rnnjax) if not name.startswith("_")]) <= 60


def test_one_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", rnnjax.__version__)
    assert found(r"^version: (\S+)$", "CITATION.cff") == rnnjax.__version__
    # The changelog announces the next version, or has a section for the newest one.
    assert found(r"^(?:Next version: |## \[)(\d+\.\d+\.\d+)\b", "CHANGELOG.md") == rnnjax.__version__


def test_one_licence():
    assert found(r"^\s+(Apache License)\n\s+Version 2\.0", "LICENSE")
    assert found(r"^license: (\S+)$", "CITATION.cff") == project()["license"] == "Apache-2.0"
    assert project()["license-files"] == ["LICENSE", "NOTICE"]
    assert (ROOT / NATIVE / "third_party" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert NATIVE in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_the_links_of_the_contributors_page_lead_to_files():
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


@pytest.fixture
def backend(monkeypatch) -> Any:
    """The build backend, on hooks of scikit-build-core that return their arguments."""
    hooks = ("build_sdist", "build_wheel", "get_requires_for_build_sdist", "get_requires_for_build_wheel")
    inner = ModuleType("scikit_build_core.build")
    vars(inner).update(dict.fromkeys(hooks, lambda *arguments: arguments))
    outer = ModuleType("scikit_build_core")
    outer.build = inner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, outer.__name__, outer)
    monkeypatch.syspath_prepend(str(ROOT / NATIVE / "backend"))
    monkeypatch.delitem(sys.modules, "optional_kernel", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return import_module("optional_kernel")


def script(path: Path, status: int) -> str:
    """A command that ends with this status."""
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(os.name != "posix", reason="without a POSIX system nothing is compiled")
def test_the_kernel_is_left_out_where_no_compiler_works(backend, monkeypatch, tmp_path):
    """A stub that fails, as macOS has without its tools, is no compiler; one that works is what CMake gets."""
    script(tmp_path / "c++", 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend.get_requires_for_build_wheel() == ({"wheel.cmake": "false"},)
    assert backend.build_wheel("dist", {"a": "b"}) == ("dist", {"a": "b", "wheel.cmake": "false"}, None)
    assert backend.build_wheel("dist", {"wheel.cmake": "true"}) == ("dist", {"wheel.cmake": "true"}, None)
    script(tmp_path / "clang++", 0)
    assert backend.build_wheel("dist", {"a": "b"}) == ("dist", {"a": "b"}, None)
    assert os.environ["CXX"] == "clang++"
    for command in (script(tmp_path / "named", 1) + " -O2", " ", "'c++"):
        monkeypatch.setenv("CXX", command)
        with pytest.raises(RuntimeError, match=r"^CXX: expected a C\+\+17 compiler that works, got .* Unset it"):
            backend.get_requires_for_build_wheel()
    assert backend.build_wheel("dist", {"cmake.define.CMAKE_CXX_COMPILER": "g++"})[1].keys() == {
        "cmake.define.CMAKE_CXX_COMPILER"
    }


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "tests/README.md"])
def test_what_a_page_imports_is_there(file):
    lines = re.findall(r"^ *from (rnnjax[\w.]*) import ([\w, ]+)", (ROOT / file).read_text(), re.MULTILINE)
    assert lines or file != "README.md"
    imports = [(module, name.strip()) for module, names in lines for name in names.split(",")]
    assert [each for each in imports if not hasattr(import_module(each[0]), each[1])] == []


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"])
def test_the_readme_points_to(file):
    assert f"]({file})" in (ROOT / "README.md").read_text()
    assert (ROOT / file).is_file()
