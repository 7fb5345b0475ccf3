"""The `objrl` command: it answers at once, and a mistake ends in one line, not a traceback."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import pytest

import objrl
from objrl import cli
from objrl.weights import Weights, registry

FAILURES: dict[str, BaseException] = {
    "value": ValueError("steps: expected at least 1,\n  got 0"),
    "file": FileNotFoundError(errno.ENOENT, "No such file or directory", "gone.h5"),
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "env": gym.error.NameNotFound("Environment `Pongg` doesn't exist."),
    "module": ModuleNotFoundError("No module named 'h5py'", name="h5py"),
    "extra": ImportError("Minari is not installed: pip install 'objrl[data]'"),
    "name": ImportError("cannot import name 'gone' from 'h5py'", name="h5py"),
    "ours": ModuleNotFoundError("No module named 'objrl.lost'", name="objrl.lost"),
    "bug": KeyError("oops"),
    "stop": KeyboardInterrupt(),
}


@dataclass(frozen=True)
class WorkConfig:
    """Work, or fail."""

    how: str = "well"
    """Which failure."""
    steps: int = 3
    """How long."""


def work(config: WorkConfig) -> None:
    if config.how in FAILURES:
        raise FAILURES[config.how]
    print(f"worked {config.steps} steps")


@pytest.fixture(autouse=True)
def work_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    verb = cli.Verb(__name__, "WorkConfig", "work", "work, or fail", extra="stub")
    monkeypatch.setitem(cli.VERBS, "work", verb)
    monkeypatch.delenv("OBJRL_DEBUG", raising=False)


def test_help_lists_every_verb_and_needs_nothing_heavy() -> None:
    # The package alone is faked, so that only what the command itself imports is seen.
    code = (
        "import sys, types; package = types.ModuleType('objrl'); sys.modules['objrl'] = package\n"
        f"package.__path__ = [{str(Path(objrl.__file__).parent)!r}]\n"
        "from objrl import cli; code = cli.main(['--help'])\n"
        "sys.exit(code or bool(sys.modules.keys() & {'torch', 'numpy', 'gymnasium', 'tyro'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in ("demo", "collect", "pretrain", "evaluate", "truth", "weights"):
        assert any(line.split()[:1] == [name] and len(line.split()) > 3 for line in lines), name


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_has_documented_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    verb = cli.VERBS[name]
    module = importlib.import_module(verb.module)
    config = getattr(module, verb.config)
    assert config.__dataclass_params__.frozen
    assert callable(getattr(module, verb.function))
    for field in dataclasses.fields(config):
        named = f"--{field.name.replace('_', '-')}" in shown
        assert named or "positional arguments" in shown


def test_options_reach_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["work", "--steps", "5"]) == 0
    assert capsys.readouterr().out == "worked 5 steps\n"


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("value", "objrl work: steps: expected at least 1, got 0\n"),
        ("file", "objrl work: [Errno 2] No such file or directory: 'gone.h5'\n"),
        ("full", "objrl work: [Errno 28] No space left on device\n"),
        ("env", "objrl work: Environment `Pongg` doesn't exist.\n"),
        (
            "module",
            "objrl work: needs h5py: pip install 'objrl[stub]' (in a clone: -e '.[stub]')\n",
        ),
        ("extra", "objrl work: Minari is not installed: pip install 'objrl[data]'\n"),
    ],
)
def test_a_mistake_is_one_line(
    how: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["work", "--how", how]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", line)
    monkeypatch.setenv("OBJRL_DEBUG", "1")
    with pytest.raises(type(FAILURES[how]), match=re.escape(str(FAILURES[how]))):
        cli.main(["work", "--how", how])


def test_a_bug_of_ours_is_not_hidden() -> None:
    with pytest.raises(KeyError, match="oops"):
        cli.main(["work", "--how", "bug"])
    with pytest.raises(ModuleNotFoundError, match=r"objrl\.lost"):
        cli.main(["work", "--how", "ours"])
    with pytest.raises(ImportError, match="cannot import name 'gone'"):
        cli.main(["work", "--how", "name"])


def test_an_interrupt_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["work", "--how", "stop"]) == 130
    assert capsys.readouterr().err == "\nobjrl work: interrupted\n"


def test_tyro_is_named_when_it_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert cli.main(["weights"]) == 2
    needed = "pip install 'objrl[pretrain]' (in a clone: -e '.[pretrain]')"
    expected = f"objrl weights: needs tyro: {needed}\n"
    assert capsys.readouterr().err == expected


def test_wrong_words_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["wieghts"]) == 2
    assert "did you mean 'weights'?" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert "usage: objrl COMMAND" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["work", "--stpes", "5"])
    assert "--steps" in capsys.readouterr().err


def test_weights_are_listed_with_their_scores(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", {})
    assert cli.main(["weights"]) == 0
    assert "No weights are shipped yet" in capsys.readouterr().out
    metrics = {"val_elbo": 203691.4, "f1_centre": 0.98712, "ap50": 0.5, "count_error_centre": 0.25}
    first = Weights("space-a", "a", "", "space", ("ALE/A-v5", "A-v4"), "fast, 7 frames", metrics)
    second = Weights("b", "b", "", "space", (), "slow", {"mse": 0.001})
    monkeypatch.setattr(registry, "WEIGHTS", {"space-a": first, "b": second})
    assert cli.main(["weights"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        [
            *("name", "f1_centre", "f1_iou", "ap50", "ap50_95", "count_error_centre"),
            *("learnt", "from", "for"),
        ],
        ["space-a", "0.987", "-", "0.5", "-", "0.25", "fast,", "7", "frames", "ALE/A-v5,", "A-v4"],
        ["b", "-", "-", "-", "-", "-", "slow"],
    ]
    scores = {"mota_iou": 0.9, "idf1_iou": 0.8, "mota_distance": 0.95, "idf1_distance": 0.85}
    third = Weights("scalor-a", "c", "", "scalor", tuple("pqrst"), "seven", scores)
    monkeypatch.setattr(registry, "WEIGHTS", {"space-a": first, "scalor-a": third})
    assert cli.main(["weights"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[3:]] == [
        ["name", *scores, "learnt", "from", "for"],
        ["scalor-a", "0.9", "0.8", "0.95", "0.85", "seven", *["p,", "q,", "r", "and", "2", "more"]],
    ]


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"objrl {objrl.__version__}\n"
