"""The scores, against hand-computed cases and against the project's own scoring rule."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from objrl.metrics import (
    MARGIN,
    Boxes,
    Rule,
    Truth,
    average_precision,
    closeness,
    iou,
    match,
    score,
    squared_error,
)

RULE = Path(__file__).parents[2] / "shared" / "truth" / "score.py"
NOTHING = np.zeros((0, 4))


def boxes(*rows: tuple[float, float, float, float]) -> Boxes:
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def truth(*frames: Boxes, ignored: Boxes = NOTHING) -> Truth:
    return Truth(frames, [("thing",) * len(f) for f in frames], [ignored] * len(frames))


def test_iou_and_closeness_by_hand() -> None:
    true = boxes((0, 0, 6, 8))  # diagonal 10
    found = boxes((0, 0, 6, 8), (3, 0, 9, 8), (3, 4, 9, 12), (20, 0, 26, 8))
    np.testing.assert_allclose(iou(true, found), [[1, 24 / 72, 12 / 84, 0]])
    np.testing.assert_allclose(closeness(true, found), [[1, 0.7, 0.5, -1]])


def test_a_box_may_fit_by_centre_and_not_by_iou() -> None:
    true, found = boxes((0, 0, 6, 8)), boxes((2, 0, 12, 8))
    assert match(true, found, "centre").tolist() == [0]
    assert match(true, found, "iou").tolist() == [-1]


def test_pairs_are_one_to_one_and_best_in_sum() -> None:
    # The first true box prefers prediction 0, but then the second would get none.
    true = boxes((0, 0, 10, 10), (6, 0, 16, 10))
    found = boxes((2, 0, 12, 10), (0, 0, 10, 10))
    assert match(true, found, "centre").tolist() == [1, 0]
    twice = score(truth(boxes((0, 0, 4, 4))), [boxes((0, 0, 4, 4), (0, 0, 4, 4))], "iou")
    assert (twice.precision, twice.recall) == (0.5, 1.0)


def test_scores_of_two_frames_by_hand() -> None:
    first = boxes((0, 0, 4, 4), (10, 0, 14, 4), (20, 0, 24, 4))
    got = score(
        Truth([first, NOTHING], [("a", "b", "b"), ()], [NOTHING, NOTHING]),
        [boxes((0, 0, 4, 4), (10, 0, 14, 4)), boxes((50, 50, 54, 54))],
        "iou",
    )
    assert got.precision == pytest.approx(2 / 3)
    assert got.recall == pytest.approx(2 / 3)
    assert got.f1 == pytest.approx(4 / 6)
    assert got.count_error == pytest.approx((1 / 3 + 1 / 1) / 2)
    assert got.errors.tolist() == [1, 1]
    assert got.class_recall == {"a": 1.0, "b": 0.5}
    assert got.class_count == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("centre", "alarm"),
    [((50, 50), False), ((28, 50), False), ((27, 50), True), ((50, 37), False), ((50, 36), True)],
)
def test_ignored_boxes_reach_twelve_pixels_sideways_and_three_up(
    centre: tuple[int, int], alarm: bool
) -> None:
    x, y = centre
    found = boxes((x - 1, y - 1, x + 1, y + 1))
    true = boxes((100, 100, 104, 104))
    got = score(truth(true, ignored=boxes((40, 40, 60, 60))), [found], "centre")
    assert got.errors.tolist() == [1 + alarm]
    assert got.count_error == (0 if alarm else 1)  # an alarm makes up for the miss in the count


def test_an_object_in_an_ignored_box_still_counts() -> None:
    true = boxes((45, 45, 50, 50))
    assert score(truth(true, ignored=boxes((40, 40, 60, 60))), [true], "iou").f1 == 1


def test_nothing_anywhere_scores_nothing() -> None:
    got = score(truth(NOTHING), [NOTHING], "centre")
    assert (got.f1, got.count_error, got.errors.tolist()) == (0, 0, [0])


@pytest.mark.skipif(not RULE.is_file(), reason="the folder shared/truth is not beside the checkout")
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_the_projects_rule(seed: int) -> None:
    spec = importlib.util.spec_from_file_location("rule", RULE)
    assert spec is not None
    assert spec.loader is not None
    rule: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    rng = np.random.default_rng(seed)

    def some(least: int, most: int) -> Boxes:
        corners = rng.integers(0, 60, (rng.integers(least, most), 2))
        return np.concatenate([corners, corners + rng.integers(2, 14, corners.shape)], 1).astype(
            float
        )

    true, ignored = [some(0, 9) for _ in range(40)], [some(0, 2) for _ in range(40)]
    # Half of the predictions are true boxes shaken by whole pixels: many are near the limits.
    found = [
        np.concatenate([t + rng.integers(-2, 3, t.shape) * [1, 1, 0, 0], some(0, 5)]) for t in true
    ]

    def xywh(frames: list[Boxes]) -> list[Boxes]:
        return [np.concatenate([f[:, :2], f[:, 2:] - f[:, :2]], 1) for f in frames]

    wide = xywh([b + MARGIN for b in ignored])
    labels = [("thing",) * len(t) for t in true]
    rules: tuple[Rule, Rule] = ("centre", "iou")
    for how in rules:
        want = rule.f1(xywh(true), xywh(found), wide, how)
        got = score(Truth(true, labels, ignored), found, how)
        assert (got.f1, got.precision, got.recall, got.count_error) == pytest.approx(
            want, abs=1e-12
        )
        assert 0.1 < got.f1 < 0.9  # neither everything nor nothing fits: the comparison says much


def test_average_precision_ranks_by_confidence(capsys: pytest.CaptureFixture[str]) -> None:
    true = truth(boxes((0, 0, 10, 10)), NOTHING)
    found = [boxes((0, 0, 10, 10)), boxes((30, 30, 40, 40))]
    sure_of_the_hit = average_precision(true, found, [np.array([0.9]), np.array([0.5])])
    sure_of_the_alarm = average_precision(true, found, [np.array([0.5]), np.array([0.9])])
    assert (sure_of_the_hit.ap50, sure_of_the_hit.ap50_95) == pytest.approx((1, 1))
    assert (sure_of_the_alarm.ap50, sure_of_the_alarm.ap50_95) == pytest.approx((0.5, 0.5))
    assert capsys.readouterr().out == ""


def test_average_precision_averages_over_ten_thresholds() -> None:
    found = [boxes((0, 0, 10, 7.2))]  # IoU 0.72: fits at 0.5, 0.55, 0.6, 0.65 and 0.7
    got = average_precision(truth(boxes((0, 0, 10, 10))), found, [np.array([1.0])])
    assert (got.ap50, got.ap50_95) == pytest.approx((1.0, 0.5))


def test_average_precision_forgives_ignored_boxes_and_finding_nothing() -> None:
    true = truth(boxes((0, 0, 10, 10)), ignored=boxes((40, 40, 60, 60)))
    found = [boxes((45, 45, 50, 50), (0, 0, 10, 10))]
    assert average_precision(true, found, [np.array([0.9, 0.1])]).ap50 == pytest.approx(1)
    assert average_precision(true, [NOTHING], [np.zeros(0)]).ap50 == 0


def test_average_precision_counts_more_than_a_hundred_boxes() -> None:
    many = boxes(*((x * 10, y * 10, x * 10 + 8, y * 10 + 8) for x in range(15) for y in range(10)))
    got = average_precision(truth(many), [many], [np.linspace(0.1, 1, len(many))])
    assert got.ap50 == pytest.approx(1)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = boxes((0, 0, 4, 4))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycocotools.coco", None)
        with pytest.raises(ImportError, match=r"pip install 'objrl\[eval\]'"):
            average_precision(truth(one), [one], [np.ones(1)])
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"scipy.*pip install 'objrl\[eval\]'"):
        score(truth(one), [one], "iou")


def test_bad_input_is_refused() -> None:
    one = boxes((0, 0, 4, 4))
    with pytest.raises(ValueError, match="each of the 1 frames of the truth, got them for 2"):
        score(truth(one), [one, one], "iou")
    with pytest.raises(ValueError, match="at least one true box"):
        average_precision(truth(NOTHING), [one], [np.ones(1)])
    with pytest.raises(ValueError, match=r"frame 0 has 2 labels.*\(2, 4\), got \(1, 4\)"):
        Truth([one], [("a", "b")], [NOTHING])
    with pytest.raises(ValueError, match="same number of frames, got 1, 0 and 1"):
        Truth([one], [], [NOTHING])


def test_squared_error_is_summed_over_each_image() -> None:
    image, other = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    other[1, :, 0, 0] = 0.5
    assert squared_error(image, other).tolist() == [0, 0.75]
    with pytest.raises(ValueError, match="of one shape"):
        squared_error(image, other[:1])
