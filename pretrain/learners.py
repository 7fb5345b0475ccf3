"""Small learners that probe features, with labels and without, and scores of clusters.

Each is short and depends on nothing but numpy and torch, so that measuring asks for no package
more. The same input gives the same output.

Letters: M points to learn from, m points to guess, F features, k clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Points = npt.NDArray[np.floating[Any]]
"""(M, F)."""

Numbers = npt.NDArray[np.int64]
"""(M,) the group of each point; which number a group has plays no part."""

_ROUNDS = 100
"""At most so many rounds of Lloyd."""


def linear(train: Points, label: Numbers, test: Points) -> Numbers:
    """Guess by multinomial logistic regression: summed loss + half the squared weights."""
    points, known = torch.from_numpy(train), torch.from_numpy(label)
    weight = torch.zeros(train.shape[1], int(label.max()) + 1, dtype=torch.float64)
    bias = torch.zeros(weight.shape[1], dtype=torch.float64)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    solver = torch.optim.LBFGS(parameters, max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> float:
        solver.zero_grad()
        penalty = weight.square().sum() / 2 / len(points)
        value = F.cross_entropy(points @ weight + bias, known) + penalty
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    solver.step(loss)  # type: ignore[no-untyped-call]
    scores = torch.from_numpy(test) @ weight.detach() + bias.detach()
    return np.asarray(scores.argmax(dim=1).numpy())


def nearest(train: Points, label: Numbers, test: Points, neighbours: int) -> Numbers:
    """Guess by the vote of the nearest; between equal votes, the nearest of all decides."""
    ballots = 1 + 0.5 ** np.arange(1, neighbours + 1)  # what is added sums to less than a vote
    votes = np.zeros((len(test), label.max() + 1))
    for start in range(0, len(test), 1024):  # all distances at once could be gigabytes
        apart = squared_distances(test[start : start + 1024], train)
        elected = label[apart.argsort(axis=1, kind="stable")[:, :neighbours]]
        rows = np.arange(start, start + len(elected))
        np.add.at(votes, (rows[:, None], elected), ballots)
    return np.asarray(votes.argmax(axis=1))


def kmeans(points: Points, count: int, rng: np.random.Generator) -> Numbers:
    """Part points into clusters: k-means++ for a first guess, then Lloyd until nothing moves.

    Args:
        points: (M, F), at least one.
        count: k; fewer come out where fewer points differ.
        rng: of the first guess. The outcome may depend much on it.
    """
    centres = points[rng.integers(len(points))][None]
    odds = squared_distances(points, centres)[:, 0]
    while len(centres) < count and odds.any():  # none: fewer different points than clusters
        more = points[rng.choice(len(points), p=odds / odds.sum())][None]
        odds = np.minimum(odds, squared_distances(points, more)[:, 0])
        centres = np.concatenate([centres, more])
    cluster = np.full(len(points), -1)
    for _ in range(_ROUNDS):
        before, cluster = cluster, squared_distances(points, centres).argmin(axis=1)
        if (cluster == before).all():
            break
        member = np.eye(len(centres))[cluster]  # (M, k)
        size = member.sum(axis=0)[:, None]
        centres = np.where(size > 0, member.T @ points / np.maximum(size, 1), centres)
    return cluster


def squared_distances(points: Points, others: Points) -> npt.NDArray[np.float64]:
    """Return (m, n) of (m, F) and (n, F); by products, differences would be m * n * F numbers."""
    norms = [np.square(each).sum(axis=1) for each in (points, others)]
    apart = norms[0][:, None] + norms[1] - 2 * points @ others.T
    apart[apart < 1e-10 * (norms[0][:, None] + norms[1])] = 0  # alike but for rounding
    return np.asarray(apart)


def purity(labels: Numbers, clusters: Numbers) -> float:
    """Return the share of points that are of the commonest label of their cluster; (M,) both."""
    return float(_contingency(labels, clusters).max(axis=0).sum() / len(labels))


def adjusted_mutual_information(first: Numbers, second: Numbers) -> float:
    """Return how much two ways to part M points agree beyond chance: 1 the same, 0 chance.

    (MI - E[MI]) / (mean of both entropies - E[MI]), in nats; the expectation is over all ways to
    part the points into groups of the same sizes.

    Args:
        first: (M,) int, the group of each point; the names of groups play no part.
        second: (M,) int.

    References:
        Vinh, Epps, Bailey: Information theoretic measures for clusterings comparison. JMLR 11,
        2010; of its variants the one that divides by the mean of the entropies.
    """
    table = _contingency(first, second)
    total, rows, columns = int(table.sum()), table.sum(axis=1), table.sum(axis=0)
    log_factorial = np.concatenate([[0.0], np.log(np.arange(1, total + 1)).cumsum()])
    mutual = expected = 0.0
    for a, row in zip(rows, table, strict=True):
        for b, shared in zip(columns, row, strict=True):
            n = np.arange(max(1, a + b - total), min(a, b) + 1)  # what the two may share
            nats = n / total * np.log(total * n / (a * b))
            sure = log_factorial[[a, b, total - a, total - b]].sum() - log_factorial[total]
            rest = [n, a - n, b - n, total - a - b + n]
            expected += float(nats @ np.exp(sure - log_factorial[rest].sum(axis=0)))
            if shared:
                mutual += float(shared / total * np.log(total * shared / (a * b)))
    entropies = [-float(size / total @ np.log(size / total)) for size in (rows, columns)]
    room = sum(entropies) / 2 - expected
    # No room is left between chance and the best where both have one group, or a group a point.
    return (mutual - expected) / room if room > 1e-12 else 1.0


def normalised_mutual_information(first: Numbers, second: Numbers) -> float:
    """Return MI / mean of both entropies of two ways to part M points: 1 the same, 0 independent.

    Not less chance: of few points in many groups it is above 0 for anything.
    """
    table = _contingency(first, second) / len(first)
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    shared = table > 0
    mutual = (table[shared] * np.log((table / np.outer(rows, columns))[shared])).sum()
    entropy = -sum(float(part @ np.log(part)) for part in (rows, columns)) / 2
    return float(mutual / entropy) if entropy > 1e-12 else 1.0


def _contingency(first: Numbers, second: Numbers) -> Numbers:
    """Count points by their groups of the first and of the second; no row or column is empty."""
    rows, columns = (np.unique(each, return_inverse=True)[1] for each in (first, second))
    table = np.zeros((rows.max() + 1, columns.max() + 1), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    return table
