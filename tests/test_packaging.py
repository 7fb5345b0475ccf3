"""What is installed: every folder, every data file, and nothing that shadows other packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import objrl

ROOT = Path(__file__).parent.parent
FOLDERS = ("objrl", "agents", "wrappers", "pretrain")


def settings() -> dict[str, dict[str, object]]:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert isinstance(tool, dict)
    return tool


def find_packages() -> set[str]:
    """Every folder with an `__init__.py`, by the name that it installs as."""
    found = set()
    for folder in FOLDERS:
        # rglob does not enter the symlinks objrl/{agents,wrappers,pretrain}.
        for path in (ROOT / folder).rglob("__init__.py"):
            name = ".".join(path.parent.relative_to(ROOT).parts)
            found.add(name if folder == "objrl" else f"objrl.{name}")
    return found


def test_the_package_list_is_the_folders() -> None:
    packages = settings()["packages"]
    assert isinstance(packages, list)
    assert set(packages) == find_packages()
    assert len(packages) == len(set(packages))


def test_the_symlinks_agree_with_the_package_folders() -> None:
    folders = settings()["package-dir"]
    for folder in FOLDERS[1:]:
        assert folders[f"objrl.{folder}"] == folder
        link = ROOT / "objrl" / folder
        assert link.is_symlink()
        assert os.readlink(link) == f"../{folder}"


def test_both_places_state_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == objrl.__version__


def test_a_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    # A copy, because setuptools leaves build/ and egg-info where it works.
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    run([*pip, "wheel", *offline, "--no-build-isolation", "-w", str(tmp_path), str(source)])
    (wheel,) = tmp_path.glob("objrl-*.whl")
    run([*pip, "install", *offline, "--target", str(target), str(wheel)])

    installed = {path.name for path in target.iterdir() if path.suffix != ".dist-info"}
    assert installed - {"bin", "__pycache__"} == {"objrl"}
    for folder in FOLDERS:
        inside = target if folder == "objrl" else target / "objrl"
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".typed", ".json", ".safetensors", ".md"):
                assert (inside / path.relative_to(ROOT)).is_file(), path
    code = (
        f"import importlib, pathlib\nfor name in {sorted(find_packages())}:\n"
        "    print(pathlib.Path(importlib.import_module(name).__file__).parent)\n"
        "import objrl; objrl.list_weights(); objrl.ObjectSlots\n"
    )
    shown = run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(target)})
    places = [Path(line) for line in shown.splitlines()]
    assert len(places) == len(find_packages())
    assert all(place.is_relative_to(target) for place in places)


def run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | (env or {}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
