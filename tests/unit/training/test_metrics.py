"""Counts and sums against hand-made logits."""

import math

import numpy as np
import pytest
import torch

from alexnet_dist.training.metrics import Answer, EvalCounts, Evaluation, Mistake, StepWindow, best_of, worst_of


def count(batches):
    counts = EvalCounts()
    for logits, labels, losses in batches:
        counts.add(torch.tensor(logits), torch.tensor(labels), torch.tensor(losses), torch.arange(len(labels)))
    return counts


def evaluation(confusion, loss_sum=1.0):
    return Evaluation(loss_sum=loss_sum, confusion=np.array(confusion, dtype=np.int64), num_top5=0, worst=())


# ---- counts ---------------------------------------------------------------------------------------------------------


def test_counts_of_uneven_batches():
    counts = count(
        [
            ([[9.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.5, 0.0, 0.1]], [0, 1, 2], [0.25, 0.5, 2.0]),
            ([[-3.0, -1.0, -2.0]], [2], [4.0]),  # the last batch is smaller
        ]
    ).totals()
    assert counts.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]], "rows are true classes"
    assert counts.confusion.dtype == np.int64
    assert counts.loss_sum == 6.75


def test_counts_do_not_depend_on_the_batches():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(101, 7, generator=generator), torch.randint(7, (101,), generator=generator)
    losses = torch.rand(101, generator=generator)
    whole, parts = EvalCounts(), EvalCounts()
    ids = torch.arange(101)
    whole.add(logits, labels, losses, ids)
    for chunk in (slice(1), slice(1, 65), slice(65, 101)):
        parts.add(logits[chunk], labels[chunk], losses[chunk], ids[chunk])
    found, other = whole.totals(), parts.totals()
    assert np.array_equal(found.confusion, other.confusion)
    assert found.confusion.sum() == 101
    assert other.loss_sum == pytest.approx(found.loss_sum, rel=1e-12)
    by_hand = [[int(((labels == t) & (logits.argmax(1) == p)).sum()) for p in range(7)] for t in range(7)]
    assert found.confusion.tolist() == by_hand
    ranks = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
    assert found.num_top5 == other.num_top5 == int((ranks < 5).sum())
    wrong = [i for i in range(101) if logits[i].argmax() != labels[i]]
    worst = sorted(wrong, key=lambda i: -losses[i])[:9]
    assert [mistake.id for mistake in whole.worst(9)] == [mistake.id for mistake in parts.worst(9)] == worst


def test_worst_mistakes_say_what_was_taken_for_what():
    logits = [[0.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0], [5.0, 0.0, 0.0]]
    counts = count([(logits, [0, 0, 1, 2], [2.0, 0.1, math.nan, 5.0])])
    worst = counts.worst(64)
    assert [(m.id, m.label, m.predicted) for m in worst] == [(2, 1, 2), (3, 2, 0), (0, 0, 1)], "NaN is worst of all"
    assert worst[2].probability == pytest.approx(math.exp(2) / (math.exp(2) + 2))
    assert worst[2].loss == 2.0
    assert [m.id for m in counts.worst(1)] == [2]
    assert EvalCounts().totals() is None, "a rank without a share"
    assert count([([[1.0, 0.0]], [0], [0.1])]).worst(64) == [], "no mistakes"


def test_the_worst_of_all_ranks_do_not_depend_on_who_saw_them():
    mistakes = [Mistake(id=i, label=0, predicted=1, probability=0.5, loss=loss) for i, loss in enumerate([1, 3, 3, 2])]
    expected = (mistakes[1], mistakes[2], mistakes[3])
    assert worst_of(mistakes, 3) == worst_of(reversed(mistakes), 3) == expected


def certain(probabilities, *, num_classes=2):
    """Return logits that give each image's class 0 such a probability."""
    rest = [(1 - p) / (num_classes - 1) for p in probabilities]
    return [[math.log(p), *[math.log(r)] * (num_classes - 1)] for p, r in zip(probabilities, rest, strict=True)]


def test_right_answers_are_the_most_certain_of_each_class():
    logits = [*certain([0.9, 0.7, 0.8]), *([b, a] for a, b in certain([0.6, 0.9, 0.8]))]
    counts = count([(logits, [0, 0, 1, 1, 1, 0], [0.1, 0.3, 1.6, 0.5, 0.1, 1.6])])
    found = counts.best()
    assert [(a.id, a.label, a.predicted) for a in found] == [(0, 0, 0), (1, 0, 0), (4, 1, 1), (3, 1, 1)]
    assert [a.probability for a in found] == pytest.approx([0.9, 0.7, 0.9, 0.6])
    assert [a.loss for a in found] == pytest.approx([0.1, 0.3, 0.1, 0.5])
    assert counts.totals().best == tuple(found)
    assert count([([[math.nan, 0.0], [0.0, 1.0]], [0, 0], [math.nan, 1.0])]).best() == [], "NaN is no answer"


@pytest.mark.parametrize(("num_classes", "each"), [(2, 16), (10, 3), (32, 1), (33, 1), (1000, 1)])
def test_right_answers_are_at_most_32_and_of_classes_that_lie_evenly(num_classes, each):
    labels = torch.arange(num_classes).repeat_interleave(20)
    counts = EvalCounts()
    logits = 5 * torch.nn.functional.one_hot(labels, num_classes).float()
    counts.add(logits, labels, torch.zeros(len(labels)), torch.arange(len(labels)))
    found = [answer.label for answer in counts.best()]
    assert len(found) == each * min(32, num_classes) <= 32
    shown = sorted(set(found))
    assert found == [label for label in shown for _ in range(each)]
    assert (shown[0], shown[-1]) == (0, num_classes - 1)
    assert max(np.diff(shown)) - min(np.diff(shown)) <= 1


def test_right_answers_do_not_depend_on_who_saw_them_nor_on_last_digits():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(400, 5, generator=generator), torch.randint(5, (400,), generator=generator)
    logits[::3] = 40 * torch.nn.functional.one_hot(labels[::3], 5)  # all of them certain
    whole, parts = EvalCounts(), [EvalCounts(), EvalCounts()]
    whole.add(logits, labels, torch.zeros(400), torch.arange(400))
    for rank, part in enumerate(parts):
        ids = torch.arange(rank, 400, 2)
        noise = 1 + 1e-6 * torch.randn(200, 5, generator=generator)
        part.add(logits[ids] * noise, labels[ids], torch.zeros(200), ids)
    one, two = (Evaluation.of_ranks([each.totals() for each in ranks]) for ranks in ([whole], [*parts, EvalCounts()]))
    assert [answer.id for answer in one.best] == [answer.id for answer in two.best]
    assert len(one.best) == 30
    answers = [Answer(id=i, label=0, predicted=0, probability=p, loss=0) for i, p in enumerate([0.5, 0.9, 0.90000001])]
    assert [answer.id for answer in best_of(reversed(answers), 2)] == [1, 2, 0]


def test_top5_is_for_more_than_five_classes():
    five, six = (Evaluation(1.0, np.eye(n, dtype=np.int64), num_top5=3, worst=()) for n in (5, 6))
    assert five.top5 is None
    assert six.top5 == 0.5


def test_summed_loss_keeps_what_float32_would_lose():
    counts = count([([[1.0, 0.0]] * 3, [0, 0, 0], [2.0**25, 1.0, 1.0])])
    assert counts.totals().loss_sum == 2**25 + 2


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_ranks_are_added_up():
    parts = [evaluation([[3, 1], [0, 1]], loss_sum=6.0), None, evaluation([[1, 0], [2, 0]], loss_sum=1.0)]
    whole = Evaluation.of_ranks(parts)
    assert whole.confusion.tolist() == [[4, 1], [2, 1]]
    assert (whole.loss_sum, whole.loss, whole.num_mirrored) == (7.0, 0.875, None)


def test_top1_and_number_of_images():
    result = evaluation([[3, 1, 0], [0, 2, 2], [1, 0, 1]])
    assert result.num_images == 10
    assert result.top1 == 0.6


def test_per_class_with_a_class_that_has_no_images():
    result = evaluation([[3, 1, 0], [0, 0, 0], [1, 0, 3]])
    assert result.per_class == [0.75, None, 0.75]


COLLAPSED = {
    "one class for all": ([[0, 100], [0, 100]], "class 1"),
    "one of ten for all": (np.eye(10)[[3] * 10] * 7, "class 3"),
    "uniform": (np.full((10, 10), 100), "chance"),
    "below chance": ([[0, 50], [50, 0]], "chance"),
    "within three deviations": (np.full((10, 10), 99) + np.diag([10] * 10), "chance"),
    "most frequent class nearly always": ([[89, 1, 0], [5, 0, 0], [5, 0, 0]], "chance"),
}


@pytest.mark.parametrize("case", COLLAPSED)
def test_collapse_is_noticed(case):
    confusion, words = COLLAPSED[case]
    found = evaluation(confusion).collapse()
    assert found is not None
    assert words in found


def test_collapse_names_both_shares():
    found = evaluation(np.full((10, 10), 100)).collapse()
    assert "10.00%" in found
    assert evaluation([[90, 0], [10, 0]]).collapse() == "every image is taken for class 0"


HEALTHY = {
    "learned": np.full((10, 10), 10) + np.diag([910] * 10),
    "one class in the data set": [[50]],
    "weak but real": np.full((10, 10), 95) + np.diag([50] * 10),
    "better than the most frequent class": [[880, 20], [40, 60]],
}


@pytest.mark.parametrize("case", HEALTHY)
def test_no_collapse_where_something_was_learned(case):
    assert evaluation(HEALTHY[case]).collapse() is None


@pytest.mark.parametrize(("hits", "collapsed"), [(1000, True), (1089, True), (1092, False), (1200, False)])
def test_the_border_lies_three_standard_deviations_above_chance(hits, collapsed):
    # 10,000 images of 10 balanced classes: 1000 + 3 * sqrt(10000 * 0.1 * 0.9) = 1090
    confusion = np.zeros((10, 10))
    for row in range(10):
        hit = hits // 10 + (row < hits % 10)
        confusion[row, row], confusion[row, (row + 1) % 10] = hit, 1000 - hit
    assert confusion.trace() == hits
    assert (evaluation(confusion).collapse() is not None) == collapsed


@pytest.mark.parametrize("confusion", [np.diag([4, 4]), np.diag([2, 2, 2]), np.diag([50, 0])])
def test_a_perfect_score_is_no_collapse(confusion):
    result = evaluation(confusion)
    assert result.top1 == 1
    assert result.collapse() is None, "a test split may be small, or hold images of one class only"


# ---- between two looks ----------------------------------------------------------------------------------------------


@pytest.fixture
def window():
    window = StepWindow()
    lost = torch.tensor([math.nan, 4.0, math.inf, -math.inf])
    window.append((torch.tensor([1.0, 2.5]), torch.tensor([7, 3]), torch.tensor(0.5)))
    window.append((lost, torch.tensor([9, 8, 5, 6]), torch.tensor(math.nan)))
    window.append((torch.tensor([2.0**25, 1.0, 1.0]), torch.tensor([0, 1, 2]), torch.tensor(1.5)))
    return window


def test_window_sums_each_step_in_double_precision(window):
    sums = window.loss_sums()
    assert len(window) == 3
    assert sums.dtype == torch.float64
    assert sums[[0, 2]].tolist() == [3.5, 2**25 + 2]
    assert math.isnan(sums[1])
    assert window.num_images == 9


def test_window_tells_each_images_loss(window):
    assert [image for image, loss in window.images(1) if not math.isfinite(loss)] == [9, 5, 6]
    assert [loss for _, loss in window.images(0)] == [1.0, 2.5]
