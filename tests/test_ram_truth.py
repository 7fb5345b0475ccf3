"""Labels from a game's RAM: which boxes count, what is written, and what a user is told."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest

from objrl import cli
from objrl.pretrain.ram_truth import OPENING, TRIES, TruthConfig, make_truth, sort_out
from objrl.pretrain.tracks import read_tracks
from objrl.pretrain.truth import read_truth
from objrl.wrappers.ram_reader import INSTALL, RamObjects, RamReader, Thing
from tests.helpers import MOVING_SQUARES, STILL_PONG
from tests.test_policies import save_agent

FUNCTIONS = "ocatari.ram.extract_ram_info"
MODULE = "ocatari.ram.pong"
needs_ocatari = pytest.mark.skipif(
    importlib.util.find_spec("ocatari") is None, reason="needs OCAtari"
)
SHORT_PONG = "objrl-test/ShortPong-v0"
"""Pong that is cut after 30 steps."""
gym.register(
    SHORT_PONG,
    entry_point="ale_py.env:AtariEnv",
    max_episode_steps=30,
    kwargs={**gym.spec(STILL_PONG).kwargs},
)


@dataclass
class Known:
    """An object as OCAtari has it."""

    category: str
    xywh: tuple[Any, ...] = (10, 10, 4, 4)
    visible: bool = True


class Extractor(Loader):
    """Stands in for OCAtari's functions: it knows Pong, and there always sees the same things.

    They are, unless `scenes` tells others step by step, the upper wall, something where Pong shows
    nothing, and, of the HUD, a score. Pong's module says that there is no more than a wall.
    """

    SCENE = (
        *(Known("Wall", (-4, 24, 200, np.uint8(10))), Known("Ghost", (2, 100, 8, 8)), None),
        *(Known("NoObject"), Known("Far", (400, 9, 9, 9)), Known("Hidden", visible=False)),
        Known("Flat", (10, 10, 4, 0)),
    )
    HUD = (Known("Score", (36, 1, 12, 20)),)

    def __init__(self) -> None:
        self.scene: Sequence[Known | None] = ()
        self.begun = 0
        self.read = 0
        self.failure: BaseException | None = None
        self.scenes: Iterator[Sequence[Known | None]] | None = None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(MAX_NB_OBJECTS={"Wall": 1}, _detect_objects_ram=None, steps=0)

    def init_objects(self, game: str, hud: bool) -> list[Known | None]:
        assert game == "pong"
        assert sys.modules[MODULE].steps == 0  # a module that nobody has used yet
        self.begun += 1
        return []

    def detect_objects_ram(
        self, objects: list[Known | None], ram: npt.NDArray[Any], game: str, hud: bool
    ) -> None:
        assert ram.shape == (128,)
        assert ram.dtype == np.int64  # as uint8 its sums wrap around on numpy 2
        assert game == "pong"
        vars(sys.modules[MODULE])["steps"] += 1
        self.read += 1
        if self.failure is not None and self.read > 20:
            raise self.failure
        if not hud:
            self.scene = self.SCENE if self.scenes is None else next(self.scenes)
        objects[:] = [*self.scene, *(self.HUD if hud else ())]


@pytest.fixture
def extractor(monkeypatch: pytest.MonkeyPatch) -> Extractor:
    fake = Extractor()
    functions = SimpleNamespace(
        init_objects=fake.init_objects, detect_objects_ram=fake.detect_objects_ram
    )
    for name in [name for name in sys.modules if name.startswith("ocatari.")]:
        monkeypatch.delitem(sys.modules, name)  # the real ones, where other tests needed them
    monkeypatch.setitem(sys.modules, FUNCTIONS, functions)
    module = importlib.util.module_from_spec(ModuleSpec(MODULE, fake))
    fake.exec_module(module)
    monkeypatch.setitem(sys.modules, MODULE, module)
    return fake


@pytest.fixture
def config(tmp_path: Path) -> TruthConfig:
    return TruthConfig(STILL_PONG, tmp_path / "new" / "pong.npz", frames=4, every=5)


def canvas(*spots: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """A brown frame of 20 x 30 with spots x, y, width, height of a colour hardly different."""
    frame = np.full((20, 30, 3), (144, 72, 17), np.uint8)
    for x, y, width, height in spots:
        frame[y : y + height, x : x + width] = 144, 72, 18
    return frame


@pytest.mark.parametrize(
    ("spot", "box", "drawn"),
    [
        ((8, 8, 4, 4), (8, 8, 4, 4), True),
        ((8, 8, 4, 4), (16, 8, 4, 4), False),
        ((8, 8, 1, 1), (8, 8, 4, 3), True),  # one pixel of 12 is more than 0.08
        ((8, 8, 1, 1), (8, 8, 13, 1), False),  # and one of 13 is less
        ((0, 0, 12, 20), (4, 8, 4, 4), False),  # nothing but another background
        ((0, 0, 30, 1), (4, 1, 4, 4), False),  # an edge beside it is no object
        ((0, 0, 30, 1), (0, 0, 30, 20), True),  # nothing around it to compare with
    ],
)
def test_what_is_drawn_differs_from_what_surrounds_it(
    spot: tuple[int, int, int, int], box: tuple[int, int, int, int], drawn: bool
) -> None:
    thing = Thing("Ball", *box)
    expected = ([thing], []) if drawn else ([], [thing])
    assert sort_out(canvas(spot), [thing], [thing]) == expected


def test_boxes_end_where_the_frame_does() -> None:
    frame = canvas((0, 18, 3, 2))
    corner, off = Thing("Ball", -2, 18, 5, 9), Thing("Ball", 30, 4, 5, 5)
    hidden, score = Thing("Ball", 26, -3, 9, 6), Thing("Score", -1, 0, 9, 4)
    assert sort_out(frame, [corner, off, hidden], [corner, off, hidden, score]) == (
        [Thing("Ball", 0, 18, 3, 2)],
        [Thing("Score", 0, 0, 8, 4), Thing("Ball", 26, 0, 4, 3)],
    )


def test_the_file_can_be_read_and_holds_what_is_seen(
    extractor: Extractor, config: TruthConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--env", config.env, "--out", str(config.out), "--frames", "4", "--every", "5"]
    assert cli.main(["truth", *arguments]) == 0
    assert "4 boxes (Wall 4), 8 to ignore" in capsys.readouterr().out
    labelled = read_truth(config.out)
    assert (labelled.game, labelled.frames.shape) == ("Pong", (4, 210, 160, 3))
    assert labelled.truth.labels == [("Wall",)] * 4
    assert [boxes.tolist() for boxes in labelled.truth.boxes] == [[[0, 24, 160, 34]]] * 4
    aside = [[36, 1, 48, 21], [2, 100, 10, 108]]
    assert [boxes.tolist() for boxes in labelled.truth.ignored] == [aside] * 4
    assert extractor.read == 2 * 60  # in every step, with and without HUD, until the last frame


def test_frames_follow_from_the_seed(extractor: Extractor, config: TruthConfig) -> None:
    def frames(**changes: Any) -> npt.NDArray[np.uint8]:
        return read_truth(make_truth(replace(config, **changes))).frames

    first = frames()
    assert np.array_equal(frames(), first)
    assert not np.array_equal(frames(seed=1), first)
    # The steps 45, 50, 55 and 60 were kept: the fourth is the first of every=60.
    assert np.array_equal(frames(every=60, frames=1)[0], first[3])


def test_who_wanders_sees_another_game(extractor: Extractor, config: TruthConfig) -> None:
    at_random = read_truth(make_truth(config)).frames
    wandering = read_truth(make_truth(replace(config, policy="wander"))).frames
    assert wandering.shape == at_random.shape
    assert not np.array_equal(wandering, at_random)


def test_every_episode_is_read_afresh(extractor: Extractor, config: TruthConfig) -> None:
    make_truth(replace(config, env=SHORT_PONG, every=10, frames=5))
    assert extractor.begun == 2 * 3  # up to step 90, which is kept although it ends an episode


def test_each_reading_has_a_module_of_its_own(extractor: Extractor) -> None:
    ours, other = RamReader("pong"), RamReader("pong")
    for reader in (ours, other):
        reader.read(np.zeros(128, np.uint8))
    assert sys.modules[MODULE].steps == 0  # OCAtari's own was never used
    ours.begin()
    assert extractor.begun == 2 * 3


def test_an_agent_can_play(extractor: Extractor, config: TruthConfig) -> None:
    agent = config.out.with_suffix(".zip")
    with pytest.raises(FileNotFoundError, match="no such file"):
        make_truth(replace(config, policy=str(agent)))
    agent.parent.mkdir()
    save_agent(agent, "ppo")
    random = read_truth(make_truth(config)).frames
    mine = read_truth(make_truth(replace(config, policy=str(agent), epsilon=0.0))).frames
    assert mine.shape == random.shape
    assert not np.array_equal(mine, random)


GONE = Known("NoObject")


def at(x: int, y: int = 10, name: str = "Shot", width: int = 2, height: int = 8) -> Known:
    return Known(name, (x, y, width, height))


@pytest.mark.parametrize(
    ("scenes", "expected"),
    [
        ([at(10), at(24), at(38)], [0, 0, 0]),  # 14 is its width and 12 more
        ([at(10), at(25)], [0, 1]),
        ([at(10, 10), at(10, 30)], [0, 0]),
        ([at(10, 10), at(10, 31)], [0, 1]),
        ([at(10), GONE, GONE, at(12)], [0, 0]),
        ([at(10), None, None, None, at(12)], [0, 1]),
        ([at(10), at(10, name="Smoke")], [0, 1]),
        ([at(10, 10, height=8), at(10, 30, height=20)], [0, 0]),  # by the larger of both boxes
        ([at(10, 10, height=20), at(10, 38, height=8)], [0, 0]),
    ],
)
def test_what_is_in_one_place_of_the_list_is_one_object_unless_it_leaps(
    scenes: list[Known | None], expected: list[int], extractor: Extractor
) -> None:
    extractor.scenes = iter([[scene] for scene in scenes])
    reader = RamReader("pong")
    found = [reader.read(np.zeros(128, np.uint8))[0] for _ in scenes]
    assert [thing.identity for things in found for thing in things] == expected


def test_places_are_told_apart_and_no_identity_outlives_an_episode(extractor: Extractor) -> None:
    extractor.scenes = iter([[at(10), at(12)], [GONE, at(10)], [at(10), at(12)]])
    reader = RamReader("pong")
    found = [reader.read(np.zeros(128, np.uint8))[0] for _ in range(2)]
    reader.begin()
    found.append(reader.read(np.zeros(128, np.uint8))[0])
    assert [[thing.identity for thing in things] for things in found] == [[0, 1], [1], [2, 3]]


def test_sequences_are_consecutive_frames_with_identities(
    extractor: Extractor, config: TruthConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    upper, lower = Extractor.SCENE[0], Known("Wall", (-4, 194, 200, 10))
    extractor.scenes = iter([[upper]] * (OPENING + 5) + [[lower]] * (OPENING + 5))
    arguments = ["--env", config.env, "--out", str(config.out), "--sequences", "2", "--length", "5"]
    assert cli.main(["truth", *arguments]) == 0
    assert "10 frames in 2 sequences of Pong" in capsys.readouterr().out
    tracks = read_tracks(config.out)
    assert [one.frames.shape for one in tracks.sequences] == [(5, 210, 160, 3)] * 2
    for one in tracks.sequences:
        assert [ids.tolist() for ids in one.ids] == [[0]] * 5  # counted anew in each
        assert one.truth.labels == [("Wall",)] * 5
    extractor.scenes = None
    step_by_step = replace(config, every=1, frames=50 + OPENING)
    frames = read_truth(make_truth(step_by_step)).frames
    assert np.array_equal(tracks.sequences[0].frames, frames[:5])
    assert np.array_equal(tracks.sequences[1].frames, frames[5 + OPENING :][:5])


def test_a_new_ball_in_the_same_place_is_another_object_in_the_file(
    extractor: Extractor, config: TruthConfig
) -> None:
    wall = Extractor.SCENE[0]
    away = Known("Wall", (-4, 194, 200, 10))  # the lower one, where the upper was
    extractor.scenes = iter([[wall]] * (OPENING + 2) + [[away]] * 2)
    one = read_tracks(make_truth(replace(config, sequences=1, length=4))).sequences[0]
    assert [ids.tolist() for ids in one.ids] == [[0], [0], [1], [1]]
    assert [boxes[0, 1] for boxes in one.truth.boxes] == [24, 24, 194, 194]


def test_no_sequence_goes_on_after_its_episode(
    extractor: Extractor, config: TruthConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objrl.pretrain.ram_truth.OPENING", 8)
    make_truth(replace(config, env=SHORT_PONG, sequences=3, length=10))
    # One in steps 9 to 18 of each episode of 30, for the next would end with step 36.
    assert extractor.read == 2 * (30 + 30 + 18)
    with pytest.raises(ValueError, match=f"last 8 \\+ 23 steps, got {TRIES} in a row .* --length"):
        make_truth(replace(config, env=SHORT_PONG, sequences=1, length=23))
    make_truth(replace(config, env=SHORT_PONG, sequences=1, length=22))


@pytest.mark.parametrize("when", ["playing", "writing"])
def test_an_interrupt_leaves_what_was_there(
    when: str, extractor: Extractor, config: TruthConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(file: Any, **arrays: Any) -> None:
        file.write(b"PK half a file")
        raise KeyboardInterrupt

    config.out.parent.mkdir()
    config.out.write_text("old")
    if when == "playing":
        extractor.failure = KeyboardInterrupt()
    else:
        monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(KeyboardInterrupt):
        make_truth(config)
    assert list(config.out.parent.iterdir()) == [config.out]
    assert config.out.read_text() == "old"


def test_what_to_install_is_told(
    config: TruthConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, FUNCTIONS, None)
    assert cli.main(["truth", "--env", config.env, "--out", str(config.out)]) == 2
    assert capsys.readouterr().err.endswith(f": {INSTALL}\n")
    assert INSTALL in (Path(__file__).parents[1] / "docs" / "truth.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames: expected at least 1, got 0"),
        ({"every": 0}, "every: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"sequences": -1}, "sequences: expected at least 0, got -1"),
        ({"length": 1}, "length: expected at least 2, got 1"),
        ({"epsilon": 1.5}, "epsilon: expected a probability"),
        ({"env": "ALE/Pongg-v5"}, "did you mean ALE/Pong-v5"),
        ({"env": MOVING_SQUARES}, "expected an Atari game of ALE"),
        ({"env": "ALE/SpaceInvaders-v5"}, "can read from RAM, got 'space_invaders'; it knows none"),
        ({"env": "ALE/Pooyan-v5"}, "can read from RAM, got 'pooyan'; it knows pong, and 1 in all"),
    ],
)
def test_bad_wishes_are_refused(
    changes: dict[str, Any], message: str, extractor: Extractor, config: TruthConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        make_truth(replace(config, **changes))
    assert not config.out.parent.exists()


def test_faults_of_an_extractor_are_named(
    extractor: Extractor, config: TruthConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor.failure = IndexError("list index out of range")
    with pytest.raises(ValueError, match=r"OCAtari fails on 'pong' \(IndexError"):
        make_truth(config)
    monkeypatch.setattr(extractor, "failure", None)
    monkeypatch.setattr(Extractor, "SCENE", ())
    with pytest.raises(ValueError, match="got none in 4 frames of Pong"):
        make_truth(config)


@needs_ocatari
def test_boxes_of_pong_are_those_that_were_looked_at(config: TruthConfig) -> None:
    make_truth(TruthConfig("ALE/Pong-v5", config.out, frames=4, seed=1234))
    with np.load(config.out) as arrays:
        assert arrays["classes"].tolist() == ["Ball", "Enemy", "Player"]
        assert arrays["boxes"].tolist() == [
            *([0, 2, 140, 135, 4, 15], [0, 0, 77, 58, 2, 4], [0, 1, 16, 71, 4, 15]),
            *([1, 2, 140, 116, 4, 15], [1, 0, 121, 91, 2, 4], [1, 1, 16, 83, 4, 15]),
            *([2, 2, 140, 136, 4, 15], [2, 1, 16, 133, 4, 15]),
            *([3, 2, 140, 140, 4, 15], [3, 1, 16, 57, 4, 15]),
        ]
        score = ([116, 1, 12, 20], [36, 1, 12, 20])
        assert arrays["ignore"].tolist() == [[i, *box] for i in range(4) for box in score]


@needs_ocatari
def test_neither_the_other_list_nor_another_reader_disturbs_a_reading() -> None:
    env: Any = gym.make("ALE/Qbert-v5")
    env.action_space.seed(0)
    env.reset(seed=0)
    rams = []
    for _ in range(180):
        env.step(env.action_space.sample())
        rams.append(env.unwrapped.ale.getRAM())
    scene, everything = (
        [list(alone.things(ram).values()) for ram in rams]
        for alone in (RamObjects("qbert"), RamObjects("qbert", hud=True))
    )
    # Qbert's module has notes on where balls were: read twice a step, it told others from 130 on.
    assert sum(thing.name == "PurpleBall" for things in scene[130:] for thing in things) > 10
    readers = RamReader("qbert"), RamReader("qbert")
    for ram, *expected in zip(rams, scene, everything, strict=True):
        for reader in readers:
            told, all_told = reader.read(ram)
            assert [[thing._replace(identity=0) for thing in told], all_told] == expected
