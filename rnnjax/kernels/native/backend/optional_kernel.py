"""The build backend: that of scikit-build-core, which compiles the CPU kernel if a C++ compiler works.

Without one it builds a wheel without the kernel, tagged `py3-none-any`, so that pip never takes it for a wheel of a
platform, and fetches neither CMake nor ninja. A compiler that works but fails on the kernel is an error, as for any
package. `pip install -C wheel.cmake=false` leaves the kernel out, and `-C wheel.cmake=true` insists on it.
"""

import os
import shlex
import shutil
import subprocess
import sys

from scikit_build_core import build

Settings = dict[str, str | list[str]] | None  # of pip's `-C`

COMPILERS = ("c++", "g++", "clang++")
PROGRAM = "#include <algorithm>\n#include <thread>\nint main() { return 0; }\n"  # no standard library, no kernel

build_sdist = build.build_sdist
get_requires_for_build_sdist = build.get_requires_for_build_sdist


def get_requires_for_build_wheel(config_settings: Settings = None):
    return build.get_requires_for_build_wheel(settings(config_settings))


def get_requires_for_build_editable(config_settings: Settings = None):
    return build.get_requires_for_build_editable(settings(config_settings))


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None):
    return build.prepare_metadata_for_build_wheel(metadata_directory, settings(config_settings))


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings = None):
    return build.prepare_metadata_for_build_editable(metadata_directory, settings(config_settings))


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None):
    return build.build_wheel(wheel_directory, settings(config_settings), metadata_directory)


def build_editable(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None):
    return build.build_editable(wheel_directory, settings(config_settings), metadata_directory)


def settings(given: Settings) -> Settings:
    """The settings given, without CMake if no compiler works and they do not say. CMake gets the compiler found."""
    cmake = " ".join([os.environ.get("CMAKE_ARGS", ""), *(given or {})])
    if "wheel.cmake" in cmake or "CMAKE_CXX_COMPILER" in cmake:
        return given
    found = compiler()
    if found is None:
        print("rnnjax: no C++ compiler works here, so the wheel is built without the CPU kernel", file=sys.stderr)
        return {**(given or {}), "wheel.cmake": "false"}
    os.environ["CXX"] = found
    return given


def compiler() -> str | None:
    """The command of a GCC or Clang that works: `CXX` if it is set, else the first on the PATH; None without one."""
    if sys.platform == "win32":  # the kernel needs a POSIX system
        return None
    named = os.environ.get("CXX")
    if named and not works(named):
        raise RuntimeError(
            f"CXX: expected a C++17 compiler that works, got {named!r}. Unset it to let others be tried, or pass "
            "-C wheel.cmake=false to leave the CPU kernel out"
        )
    return named or next(filter(works, COMPILERS), None)


def works(command: str) -> bool:
    """Whether the command compiles C++17 as GCC and Clang do: some are only stubs, or lack the standard library."""
    try:
        program, *options = shlex.split(command)
    except ValueError:  # nothing in it, or a quotation without an end
        return False
    if shutil.which(program) is None:
        return False
    check = [program, *options, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    return subprocess.run(check, input=PROGRAM, text=True, capture_output=True, check=False).returncode == 0
