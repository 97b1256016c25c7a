"""Subsets of labels: how many of each class, nested draws, and lists that name them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byol.data.open import open_source
from byol.data.source import DataError
from byol.evaluate.subsets import choose, parse_amounts, read_list, write_list

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [200, 60, 20, 4]))


def counts(rows):
    return np.bincount(LABELS[rows], minlength=4).tolist()


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("1%", [2, 1, 1, 1]),  # 2, 0.6, 0.2, 0.04: the nearest, and at least one
        ("2.5%", [5, 2, 1, 1]),  # 5, 1.5, 0.5, 0.1
        ("10%", [20, 6, 2, 1]),  # 20, 6, 2, 0.4
        ("12.5%", [25, 8, 3, 1]),  # 25, 7.5, 2.5, 0.5: halves go up, at even and odd numbers alike
        ("100%", [200, 60, 20, 4]),
        (1, [1, 1, 1, 1]),
        (4, [4, 4, 4, 4]),
    ],
)
def test_each_class_gives_its_share(amount, expected):
    rows = choose(LABELS, amount, seed=0)
    assert counts(rows) == expected
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()


def test_a_share_is_exact_where_floats_are_not():
    # 0.145 * 100 is 14.499999999999998 in floats, and 14.5 goes up.
    assert len(choose(np.zeros(100, np.int64), "14.5%", seed=0)) == 15


def test_smaller_amounts_are_parts_of_larger_ones():
    for amounts in (("1%", "2%", "10%", "12.5%", "50%", "100%"), (1, 2, 4), (1, "10%"), ("2%", "10%", "100%")):
        drawn = [set(choose(LABELS, amount, seed=3)) for amount in amounts]
        assert all(small < large for small, large in pairwise(drawn))
    assert choose(LABELS, 1, seed=3).tolist() != choose(LABELS, 1, seed=4).tolist()
    assert choose(LABELS, "10%", seed=3).tolist() == choose(LABELS, "10%", seed=3).tolist()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.booleans(),
    st.integers(0, 9),
)
def test_any_two_shares_are_nested(labels, one, other, grouped, seed):
    labels = np.array(labels)
    groups = np.arange(len(labels)) // 3 if grouped else None
    low, high = (f"{tenths / 10}%" for tenths in sorted((one, other)))
    small, large = (choose(labels, amount, seed=seed, groups=groups) for amount in (low, high))
    assert set(small) <= set(large)
    assert set(labels[small]) == set(labels)


def test_every_image_is_drawn_as_often_and_classes_apart():
    labels = np.repeat([0, 1], 10)
    drawn = np.zeros(20)
    same_place = 0
    for seed in range(400):
        rows = choose(labels, 1, seed=seed)
        drawn[rows] += 1
        same_place += int(rows[0]) == int(rows[1]) - 10
    # Of each image 40 draws are expected, and as many of the same place in both classes; five standard deviations.
    assert np.abs(drawn - 40).max() < 5 * np.sqrt(400 * 0.1 * 0.9)
    assert abs(same_place - 40) < 5 * np.sqrt(400 * 0.1 * 0.9)


def test_a_class_s_draw_depends_on_no_other_class():
    ones = np.flatnonzero(LABELS == 1)
    others = np.where(LABELS == 1, 1, 7)
    drawn = choose(np.where(LABELS == 3, 2, LABELS), 5, seed=0)
    assert [r for r in drawn if r in ones] == [r for r in choose(others, 5, seed=0) if r in ones]


def test_images_without_a_label_are_not_used():
    labels = np.where(LABELS == 2, -1, LABELS)
    rows = choose(labels, "100%", seed=0)
    assert np.array_equal(rows, np.flatnonzero(LABELS != 2))


def test_groups_are_drawn_whole_until_they_hold_the_amount():
    labels = np.repeat([0, 1], 30)
    sizes = [1, 7, 2, 4, 6, 3, 5, 8, 1, 9, 2, 4, 3, 5]  # the eighth patient has images of both classes
    groups = np.repeat([f"patient {i}" for i in range(14)], sizes)
    for amount, least, seed in ((3, 3, 0), (5, 5, 1), (9, 9, 2), ("50%", 15, 3), (12, 12, 4)):
        rows = choose(labels, amount, seed=seed, groups=groups)
        for label in (0, 1):
            members = np.flatnonzero(labels == label)
            taken = np.intersect1d(rows, members)
            names = np.unique(groups[taken])
            assert np.array_equal(taken, members[np.isin(groups[members], names)])  # whole
            largest = max(np.sum(groups[taken] == name) for name in names)
            assert least <= len(taken) < least + largest  # and no group too many


def test_a_class_with_too_few_images_is_named_with_its_count():
    with pytest.raises(DataError, match="class 3 has 4 labelled images and 5 of each class are wanted") as error:
        choose(LABELS, 5, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("amount", ["0%", "0.0%", "101%", "-1%", "1", "ten", "", "%", "nan%", "1e1%", "1/2%", 0, -5])
def test_what_is_no_amount_is_refused_in_one_line(amount):
    with pytest.raises(ValueError, match="is no amount of labels; use a share") as error:
        choose(LABELS, amount, seed=0)
    assert "\n" not in str(error.value)


def test_amounts_on_the_command_line():
    assert parse_amounts("1%,10%,5") == ("1%", "10%", 5)
    assert parse_amounts(" 12.5% , 3,3") == ("12.5%", 3)


@pytest.mark.parametrize("text", ["", "1%,", "1%,0", "5,-1", "1.5", "200%", "1% 10%"])
def test_amounts_that_are_none_are_refused_in_one_line(text):
    with pytest.raises(ValueError, match="is no amount of labels") as error:
        parse_amounts(text)
    assert "\n" not in str(error.value)


NAMES = [
    "train/n01440764/n01440764_10183.JPEG",
    "train/n01440764/n01440764_39.JPEG",
    "train/n01443537/n01443537_39.JPEG",
    "train/n01443537/1.JPEG",
    "train/n01440764/1.JPEG",
    "1.JPEG",
]


def listed(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("n01443537_39.JPEG\nn01440764_10183.JPEG\n", [0, 2]),
        ("# the published list\n\nn01440764_39.JPEG\r\n  \n n01443537_39.JPEG ", [1, 2]),
        ("train/n01443537/1.JPEG", [3]),
        ("n01440764/1.JPEG", [4]),
        ("1.JPEG", [5]),  # the whole name of one image, and the end of two more
        ("imagenet/train/n01440764/n01440764_39.JPEG", [1]),
        ("\ufeffn01440764_39.JPEG", [1]),
    ],
)
def test_a_list_names_images_whole_or_by_their_end(tmp_path, text, rows):
    found = read_list(listed(tmp_path, text), NAMES)
    assert found.tolist() == rows
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764_39.JPEG\nx.JPEG\n\ny.JPEG\n", r"line 2 .*\(x.JPEG\) names no image .* in all: 2; correct"),
        ("n01440764_39.JPE", "names no image"),
        ("0764_39.JPEG", "names no image"),  # not from a folder's name on
        ("0764/n01440764_39.JPEG", "names no image"),
        ("val/n01440764_39.JPEG", "names no image"),
        ("# one\n1.JPG", r"line 2 .* names no image .* in all: 1"),
        ("n01440764_39.JPEG\n#\nn01440764_39.JPEG", r"line 3 .* names the image of line 1 again; .* in all: 1; list"),
        ("n01440764_39.JPEG\ntrain/n01440764/n01440764_39.JPEG", "line 2 .* of line 1 again"),
        ("", "names no image; write one"),
        ("# nothing\n\n", "names no image; write one"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_lists_that_do_not_fit_are_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        read_list(listed(tmp_path, text), NAMES)
    assert "\n" not in str(error.value)


def test_a_line_that_names_several_images_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"line 1 .* names 2 images, .*n01443537/1.JPEG and .*n01440764/1.JPEG"
    ) as error:
        read_list(listed(tmp_path, "1.JPEG\n1.JPEG\n"), NAMES[:5])
    assert "in all: 2; write the whole names" in str(error.value)
    with pytest.raises(DataError, match="names 2 images"):
        read_list(listed(tmp_path, "a.png"), ["a.png", "a.png"])


def test_a_missing_list_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_list(tmp_path / "none.txt", NAMES)


def test_a_written_list_is_read_back(tmp_path):
    source = open_source("digits")
    rows = choose(source.labels, "1%", seed=0)
    names = [source.name_of(i) for i in source.ids]
    write_list(tmp_path / "used.txt", [names[row] for row in rows])
    np.testing.assert_array_equal(read_list(tmp_path / "used.txt", names), rows)
    assert len((tmp_path / "used.txt").read_text().splitlines()) == len(rows) == 40


@settings(max_examples=100, deadline=None)
@given(st.sets(st.text("ab# /.é'", min_size=1, max_size=5).filter(str.isprintable), min_size=1), st.data())
def test_names_of_any_kind_are_read_back(tmp_path_factory, names, data):
    names = sorted(names)
    rows = sorted(data.draw(st.sets(st.integers(0, len(names) - 1), min_size=1)))
    path = tmp_path_factory.mktemp("lists") / "list.txt"
    write_list(path, [names[row] for row in rows])
    assert read_list(path, names).tolist() == rows
