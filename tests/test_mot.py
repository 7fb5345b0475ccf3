"""Scores of tracks: cases reckoned by hand, and what must not change them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objrl.metrics import Boxes
from objrl.pretrain.mot import Followed, Rule, Switch, TrackScore, score_tracks, similarity

SIZE = 4


def box(x: float, y: float = 0) -> list[float]:
    return [x, y, x + SIZE, y + SIZE]


def followed(*frames: Mapping[int, float]) -> Followed:
    """One frame each: where the box of an identity begins."""
    return Followed(
        [np.array([box(x) for x in frame.values()], float).reshape(-1, 4) for frame in frames],
        [np.array(list(frame), np.int64) for frame in frames],
    )


def score(
    wanted: Sequence[Followed],
    found: Sequence[Followed],
    rule: Rule = "iou",
    ignored: Boxes | None = None,
) -> TrackScore:
    aside = np.zeros((0, 4)) if ignored is None else ignored
    return score_tracks(wanted, [[aside] * len(one) for one in wanted], found, rule)


A, B, FAR = 10.0, 50.0, 90.0
BOTH = {1: A, 2: B}


def test_a_switch_a_miss_and_a_false_alarm() -> None:
    found = followed(
        {5: A, 6: B}, {5: A, 6: B}, {5: A, 6: B, 9: FAR}, {7: A, 6: B}, {7: A}, {7: A, 6: B}
    )
    got = score([followed(*[BOTH] * 6)], [found])
    assert (got.objects, got.hits, got.false_alarms) == (12, 11, 1)
    assert (got.identities, got.found_identities) == (2, 4)
    assert got.switches == (Switch(0, 3, identity=1, since=2, before=5, after=7),)
    assert got.mota == pytest.approx(1 - 3 / 12)
    assert got.motp == pytest.approx(1)
    assert got.precision == got.recall == pytest.approx(11 / 12)
    assert got.idf1 == pytest.approx((3 + 5) / 12)  # half of one object, the other but for once
    assert got.deta == pytest.approx(11 / 13)
    assert got.assa == pytest.approx((3 * 3 / 6 + 3 * 3 / 6 + 5 * 5 / 6) / 11)
    assert got.hota == pytest.approx(np.sqrt(got.deta * got.assa))
    assert got.count_error == pytest.approx((1 / 2 + 1 / 2) / 6)


def test_two_objects_that_swap_are_two_switches() -> None:
    found = followed(*[{5: A, 6: B}] * 3, *[{6: A, 5: B}] * 3)
    got = score([followed(*[BOTH] * 6)], [found])
    assert [(s.frame, s.identity, s.after) for s in got.switches] == [(3, 1, 6), (3, 2, 5)]
    assert [got.mota, got.idf1] == pytest.approx([10 / 12, 1 / 2])
    assert [got.precision, got.recall, got.deta] == pytest.approx([1, 1, 1])
    assert got.assa == pytest.approx(3 / 9)


def test_who_comes_back_under_another_name_has_switched_where_it_was_lost() -> None:
    wanted = followed({1: A}, {1: A}, {}, {1: A}, {1: A})
    got = score([wanted], [followed({5: A}, {}, {}, {6: A}, {6: A})])
    assert got.switches == (Switch(0, 3, 1, since=0, before=5, after=6),)
    same = score([wanted], [followed({5: A}, {}, {}, {5: A}, {5: A})])
    assert not same.switches
    assert same.mota == pytest.approx(3 / 4)


def test_who_is_followed_stays_so_although_another_fits_better() -> None:
    wanted = followed({1: A}, {1: A})
    assert not score([wanted], [followed({5: A}, {5: A + 1, 6: A})]).switches
    assert len(score([wanted], [followed({5: A}, {5: A + 3, 6: A})]).switches) == 1


def test_nothing_found_nothing_there_and_only_false_alarms() -> None:
    nothing, there = followed({}, {}), followed(BOTH, BOTH)
    missed = score([there], [nothing])
    assert (missed.mota, missed.idf1, missed.hota, missed.recall) == (0, 0, 0, 0)
    assert (missed.objects, missed.hits, missed.count_error) == (4, 0, 1)
    alarms = score([nothing], [there])
    assert (alarms.false_alarms, alarms.precision, alarms.count_error) == (4, 0, 2)
    empty = score([nothing], [nothing])
    assert (empty.objects, empty.mota, empty.count_error, empty.switches) == (0, 0, 0, ())


def test_counts_of_sequences_are_summed_and_a_name_means_nothing_beyond_its_own() -> None:
    lost, kept = followed(*[{1: A}] * 2), followed(*[{1: A}] * 8)
    got = score([lost, kept], [followed({}, {}), followed(*[{5: A}] * 8)])
    assert [got.mota, got.recall, got.idf1] == pytest.approx([0.8, 0.8, 2 * 8 / (10 + 8)])
    assert got.identities == 2
    other = score([kept, kept], [followed(*[{5: A}] * 8), followed(*[{6: A}] * 8)])
    assert not other.switches
    assert [other.mota, other.hota] == pytest.approx([1, 1])
    late = score([kept, kept], [followed(*[{5: A}] * 8), followed(*[{5: A}] * 7, {6: A})])
    assert late.switches == (Switch(1, 7, 1, since=6, before=5, after=6),)


def test_what_is_ignored_counts_neither_way() -> None:
    wanted, found = followed(BOTH, BOTH), followed({5: A, 6: B, 7: FAR}, {5: A, 6: B})
    here = np.array([box(FAR)])
    assert score([wanted], [found]).false_alarms == 1
    got = score([wanted], [found], ignored=here)
    assert (got.mota, got.count_error, got.found_identities) == (1, 0, 2)
    assert score([wanted], [found], ignored=np.array([box(A)])).hits == 4  # an object is there


def test_a_pair_fits_within_twice_the_size_or_by_half() -> None:
    true = np.array([[0.0, 0, 4, 8]])  # its size is 6
    moved = [true + np.array([dx, 0, dx, 0]) for dx in (0, 6, 11.9, 12.1, 30)]
    got = [similarity(true, other, "distance").item() for other in moved]
    assert got == pytest.approx([1, 0.75, 1 - 11.9 / 24, 1 - 12.1 / 24, 0])
    larger = [true * np.array([1, 1, 1, factor]) for factor in (1.9, 2.1)]
    assert similarity(true, larger[0], "iou").item() == pytest.approx(1 / 1.9)
    hits = [score([_one(true)], [_one(other)]).hits for other in larger]
    assert hits == [1, 0]
    near = [score([_one(true)], [_one(other)], "distance").hits for other in moved[2:4]]
    assert near == [1, 0]


def _one(boxes: Boxes) -> Followed:
    return Followed([boxes], [np.array([0])])


@given(st.integers(0, 2**32 - 1), st.sampled_from(["iou", "distance"]))
@settings(max_examples=60, deadline=None)
def test_names_and_order_mean_nothing(seed: int, rule: Rule) -> None:
    rng = np.random.default_rng(seed)  # places without ties: which of equals is taken is no matter

    def scene() -> Followed:
        ids = [rng.permutation(5)[: rng.integers(5)] for _ in range(6)]
        corners = [rng.uniform(0, 9, (len(each), 2)) for each in ids]
        return Followed([np.concatenate([c, c + SIZE], axis=1) for c in corners], ids)

    def renamed(one: Followed) -> Followed:
        names = 3 + 10 * rng.permutation(5)
        order = [rng.permutation(len(each)) for each in one.ids]
        return Followed(
            [boxes[rows] for boxes, rows in zip(one.boxes, order, strict=True)],
            [names[ids[rows]] for ids, rows in zip(one.ids, order, strict=True)],
        )

    wanted, found = scene(), scene()
    got = score([wanted], [found], rule)
    changed = score([renamed(wanted)], [renamed(found)], rule)
    assert _numbers(changed) == pytest.approx(_numbers(got))
    # TrackEval counts as many switches as are listed.
    errors = got.objects - got.hits + got.false_alarms + len(got.switches)
    assert got.mota == pytest.approx(1 - errors / got.objects if got.objects else 0)


def _numbers(got: TrackScore) -> list[float]:
    return [got.mota, got.motp, got.idf1, got.hota, got.count_error, len(got.switches)]


def test_what_cannot_be_scored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = followed(BOTH), followed(BOTH, BOTH)
    with pytest.raises(ValueError, match="expected at least one sequence, got none"):
        score([], [])
    with pytest.raises(ValueError, match="same number of sequences, got 1, 1 and 0"):
        score([one], [])
    with pytest.raises(
        ValueError, match=r"sequence 0 to have 1 frames.* got 1 ignored and 2 found"
    ):
        score([one], [two])
    with pytest.raises(ValueError, match="same number of frames, got 1 and 2"):
        Followed(one.boxes, two.ids)
    with pytest.raises(ValueError, match=r"frame 0, got \(2, 4\) and \(1,\)"):
        Followed(one.boxes, [np.array([1])])
    with pytest.raises(ValueError, match=r"every identity once in frame 1, got \[2, 2\]"):
        Followed(two.boxes, [np.array([1, 2]), np.array([2, 2])])
    monkeypatch.setitem(sys.modules, "trackeval.metrics", None)
    with pytest.raises(ImportError, match=r"trackeval.*pip install 'objrl\[eval\]'"):
        score([one], [one])
