"""The pictures of an evaluation: the values that are drawn, and that nothing is cut off or overlaps."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.optimize import minimize

from byol import pictures
from byol.data.arrays import digits
from byol.pictures.evaluation import apart
from byol.pictures.figure import _COLOURS, _colours, _plain, _wrapped

GREEN, RED = "#2b8a57", "#c8402f"


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Calls a function that draws; its figure, found to be a PNG of its size that holds all its artists."""

    def savefig(figure, path):
        saved.append(figure)
        save(figure, path)

    def call(function, *args, title="what is drawn", **kwargs):
        path = tmp_path / f"{len(saved)}.png"
        function(*args, path, title=title, **kwargs)
        figure = saved[-1]
        width, height = figure.get_size_inches()
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert image.size == pytest.approx((120 * width, 120 * height), abs=1)
        box = figure.get_tightbbox()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.02
        return figure

    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", savefig)
    return call


def words(texts):
    return [text.get_text() for text in texts]


def overlaps(texts):
    boxes = [Text.get_window_extent(text) for text in texts if text.get_text()]  # an annotation's without its line
    return [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def some_counts(classes, seed=0):
    generator = np.random.default_rng([seed, classes])
    return generator.poisson(0.4, (classes, classes)) + 40 * np.eye(classes, dtype=int)


def test_a_cell_of_the_matrix_has_its_share_of_the_row_and_its_count(draw):
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 3, 36]])
    axis, bar = draw(pictures.confusion_matrix, counts, ["cat", "dog", "ship"]).axes
    diagonal, errors = (image.get_array() for image in axis.images)
    assert diagonal.compressed().tolist() == [0.8, 0.0, 0.9]
    assert errors.compressed().tolist() == [0.2, 0.0, 0.0, 0.0, 0.025, 0.075]
    assert {(text.get_position()[::-1], text.get_text()) for text in axis.texts} == {
        ((0, 0), "8"),
        ((0, 1), "2"),
        ((2, 0), "1"),
        ((2, 1), "3"),
        ((2, 2), "36"),
    }
    assert words(axis.get_yticklabels()) == ["cat", "dog (no images)", "ship"]
    assert words(axis.get_xticklabels()) == ["cat", "dog", "ship"]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("true", "predicted")
    assert words(bar.get_yticklabels()) == ["0%", "1%", "5%", "20%", "50%", "100%"]


def test_errors_stand_out_from_the_diagonal(draw):
    axis, _ = draw(pictures.confusion_matrix, np.array([[95, 5], [0, 100]]), ["a", "b"]).axes
    right, wrong = axis.images
    blank, pale, most = (right.to_rgba(np.array([share]))[0, :3] for share in (0, 0.95, 1))
    assert 0 < np.abs(blank - pale).max() < np.abs(blank - most).max() < 0.25
    error, often = (wrong.to_rgba(np.array([share]))[0, :3] for share in (0.05, 0.5))
    assert np.abs(blank - error).max() > 0.1
    assert np.abs(blank - often).max() > 0.5


@pytest.mark.parametrize(("num", "named"), [(2, 2), (20, 20), (31, 16), (100, 25)])
def test_the_matrix_is_square_and_its_texts_have_room(draw, num, named):
    classes = [f"quite a long name of the class {i}" for i in range(num)]
    counts = some_counts(num)
    figure = draw(pictures.confusion_matrix, counts, classes)
    axis = figure.axes[0]
    box = axis.get_window_extent()
    assert box.width == pytest.approx(box.height, abs=1)
    assert box.width > 0.9 * 120 * min(0.9 * num, 6.5)
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert words(labels) == [_plain(name, 22) for name in classes[:: -(-num // 30)]]
        assert len(labels) == named
        assert not overlaps(labels)
    assert len(axis.texts) == (np.count_nonzero(counts) if num <= 20 else 0)
    assert not overlaps(axis.texts)
    assert len(figure.axes) == (2 if num <= 20 else 3)


def test_large_numbers_shrink_into_their_cells(draw):
    counts = np.zeros((20, 20), dtype=int)
    counts[4:6] = 123_456
    axis, _ = draw(pictures.confusion_matrix, counts, list("abcdefghijklmnopqrst")).axes
    assert len(axis.texts) == 40
    assert not overlaps(axis.texts)


def test_the_pairs_confused_most_stand_beside_a_large_matrix(draw):
    counts = 5 * np.eye(25, dtype=int)
    counts[3, 7], counts[7, 3], counts[24, 0] = 2, 9, 4
    classes = [f"c{i}" for i in range(25)]
    beside = draw(pictures.confusion_matrix, counts, classes).axes[1]
    head, *pairs = words(beside.texts)
    assert head == "confused most often"
    assert pairs == ["c7\ntaken for c3", "9 of 14", "c24\ntaken for c0", "4 of 9", "c3\ntaken for c7", "2 of 7"]
    beside = draw(pictures.confusion_matrix, some_counts(25), classes).axes[1]
    assert len(beside.texts) == 1 + 2 * 10
    assert not overlaps(beside.texts)
    beside = draw(pictures.confusion_matrix, np.eye(25, dtype=int), classes).axes[1]
    assert words(beside.texts) == ["no image is confused"]


def test_a_single_error_among_hundreds_of_classes_can_be_seen(draw, tmp_path):
    counts = 20 * np.eye(600, dtype=int)
    counts[100, 301] = 5
    axis = draw(pictures.confusion_matrix, counts, [str(i) for i in range(600)]).axes[0]
    colour = axis.images[1].to_rgba(np.array([0.2]), bytes=True)[0, :3]
    with Image.open(tmp_path / "0.png") as image:
        seen = np.argwhere((np.asarray(image)[..., :3] == colour).all(axis=2))
    column, row = axis.transData.transform((301, 100))
    row = image.height - row
    assert 1 <= (np.abs(seen - (row, column)).max(axis=1) < 3).sum() <= 9


def test_counts_and_classes_must_match(tmp_path):
    with pytest.raises(ValueError, match=r"counts are \[2, 2\] for 3 classes"):
        pictures.confusion_matrix(np.eye(2, dtype=int), ["a", "b", "c"], tmp_path / "x.png", title="")


def dots(axis, label):
    (line,) = [line for line in axis.lines if line.get_label() == label]
    return list(zip(*line.get_data(), strict=True))


def test_classes_are_sorted_and_weighed_by_their_images(draw):
    rows = [("cat", 0.5, 0.3, 0.7, 20), ("dog", float("nan"), float("nan"), float("nan"), 0)]
    rows += [("ship", 0.25, 0.1, 0.5, 60), ("owl", 1.0, 0.8, 1.0, 20)]
    figure = draw(pictures.per_class, rows, baseline={"owl": 0.05, "cat": 0.45, "dog": 0.3})
    (axis,) = figure.axes
    assert words(axis.get_yticklabels()) == ["ship", "cat", "owl"]
    assert dots(axis, "accuracy and 95 % interval") == [(0.25, 0), (0.5, 1), (1.0, 2)]
    (intervals,) = axis.collections
    assert [segment.tolist() for segment in intervals.get_segments()] == [
        [[0.1, 0], [0.5, 0]],
        [[0.3, 1], [0.7, 1]],
        [[0.8, 2], [1.0, 2]],
    ]
    assert dots(axis, "untrained") == [(0.45, 1), (0.05, 2)]
    # (0.5 20 + 0.25 60 + 1 20) / 100
    assert [x for x, _ in dots(axis, "all 100 images: 0.450")] == pytest.approx([0.45, 0.45])
    assert words(axis.texts) == ["0.250  n=60", "0.500  n=20", "1.000  n=20"]
    assert axis.get_xlabel().endswith("\nno test images: dog")
    assert axis.yaxis_inverted()
    left, right = axis.get_xlim()
    assert left < 0.05
    assert right > 1
    assert "untrained" in words(figure.legends[0].get_texts())


def test_of_many_classes_the_worst_and_the_best_are_drawn(draw):
    names = [f"genus species subsp. variety {i:03}" for i in range(100)]
    rows = [(name, i / 198, i / 200, i / 100, 30) for i, name in enumerate(names)]
    figure = draw(pictures.per_class, rows[::-1], baseline={})
    (axis,) = figure.axes
    height = figure.get_size_inches()[1]
    assert 8 < height < 12
    assert [x * 198 for x, _ in dots(axis, "accuracy and 95 % interval")] == pytest.approx(
        [*range(20), *range(80, 100)]
    )
    assert words(axis.get_yticklabels())[19:21] == [_plain(names[19], 30), _plain(names[80], 30)]
    assert words(axis.texts)[-1] == "60 classes between"
    assert [y for _, y in dots(axis, "accuracy and 95 % interval")] == [*range(20), *range(22, 42)]
    assert not overlaps([*axis.texts, *axis.get_yticklabels()])
    # The overall accuracy is that of all classes, drawn or not.
    assert "all 3,000 images: 0.250" in words(figure.legends[0].get_texts())
    assert len(figure.legends[0].get_texts()) == 2
    (axis,) = draw(pictures.per_class, rows[:40]).axes
    assert len(axis.texts) == 40


def test_the_accuracies_of_classes_fill_the_axis(draw):
    rows = [("good", 0.99, 0.96, 1.0, 100), ("defective", 0.93, 0.88, 0.97, 100)]
    (axis,) = draw(pictures.per_class, rows).axes
    assert axis.get_xlim() == pytest.approx((0.8, 1.02))
    (axis,) = draw(pictures.per_class, rows, baseline={"good": 0.55}).axes
    assert axis.get_xlim() == pytest.approx((0.5, 1.02))
    (axis,) = draw(pictures.per_class, [("bad", 0.0, 0.0, 0.1, 30)]).axes
    assert axis.get_xlim() == pytest.approx((-0.02, 1.02))


def test_classes_without_any_test_image_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="no class has a test image"):
        pictures.per_class([("a", 0.0, 0.0, 0.0, 0)], tmp_path / "x.png", title="")


def real_images():
    gray = list(digits()[0][::700])
    colour = [np.repeat(image, 3, axis=2) for image in gray]
    return gray, [image[: 28 - 3 * i, : 10 + 3 * i] for i, image in enumerate(colour)]


def test_neighbours_stand_in_their_query_s_row_and_are_judged_twice(draw):
    gray, colour = real_images()
    queries, found = [gray[0], colour[1]], [gray[1:4], colour[2:4]]
    (axis,) = draw(
        pictures.neighbour_sheet, queries, found, [[True, False, True], [False, True]], ["a 0", "test/one.png"]
    ).axes
    drawn = [queries[0], *found[0], queries[1], *found[1]]
    cells = [(0, 0), (1.25, 0), (2.25, 0), (3.25, 0), (0, 1), (1.25, 1), (2.25, 1)]
    for image, (x, y), shown in zip(drawn, cells, axis.images, strict=True):
        assert np.array_equal(shown.get_array(), image if image.shape[2] == 3 else image[..., 0])
        left, right, bottom, top = shown.get_extent()
        assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx((x + 0.5, y + 0.5))
        assert (right - left) / (bottom - top) == pytest.approx(image.shape[1] / image.shape[0])
        assert max(right - left, bottom - top) == pytest.approx(0.92)
        assert shown.get_clim() == (0, 255)
    judged = [(to_hex(frame.get_edgecolor()), frame.get_linestyle() == "-") for frame in axis.patches]
    green, red, query = (GREEN, True), (RED, False), ("#22303c", True)
    assert judged == [query, green, red, green, query, red, green]
    marks = [text for text in axis.texts if text.get_text() in ("\N{CHECK MARK}", "\N{BALLOT X}")]
    assert [(text.get_text(), to_hex(text.get_bbox_patch().get_facecolor())) for text in marks] == [
        ("\N{CHECK MARK}" if right else "\N{BALLOT X}", colour) for colour, right in (green, red, green, red, green)
    ]
    assert {"a 0", "test/one.png", "query", "nearest", "2", "3"} <= set(words(axis.texts))
    assert axis.get_window_extent().width / (4.25 * 120) == pytest.approx(1, abs=0.1)


def test_neighbours_without_labels_are_not_judged(draw):
    gray, _ = real_images()
    (axis,) = draw(pictures.neighbour_sheet, gray[:1], [gray[1:3]], None, ["test/" + "long_" * 30]).axes
    assert not {GREEN, RED} & {to_hex(frame.get_edgecolor()) for frame in axis.patches}
    assert len(axis.texts) == 4


def test_suggested_images_stand_in_order_with_their_names(draw):
    gray, colour = real_images()
    images = gray + colour[:3]
    names = [f"survey_of_a_year/site_{i}/photo_of_{i:04}.jpg" for i in range(len(images))]
    (axis,) = draw(pictures.suggested_sheet, images, names).axes
    assert len(images) == 11
    starts = [(shown.get_extent()[0], shown.get_extent()[3]) for shown in axis.images]
    assert starts == sorted(starts, key=lambda start: (round(start[1]), start[0]))
    assert len({round(top) for _, top in starts}) == 2
    for image, shown in zip(images, axis.images, strict=True):
        assert np.array_equal(shown.get_array(), image if image.shape[2] == 3 else image[..., 0])
    numbers = [text for text in axis.texts if text.get_text().isdigit()]
    captions = [text for text in axis.texts if not text.get_text().isdigit()]
    assert words(numbers) == [str(i + 1) for i in range(11)]
    assert words(captions)[10] == "survey_of_a_year/\nsite_10/\nphoto_of_0010.jpg"
    assert not overlaps(captions)
    frames = [shown.get_window_extent() for shown in axis.images]
    assert not [1 for text in captions for frame in frames if text.get_window_extent().overlaps(frame)]
    draw(pictures.suggested_sheet, images[:1], ["a"])


def test_curves_show_each_accuracy_and_its_interval(draw):
    curves = {
        "backbone": [(1000, 0.9, 0.88, 0.92), (10, 0.5, 0.4, 0.6), (100, 0.8, 0.75, 0.84)],
        "raw pixels": [(10, 0.3, 0.25, 0.4), (1000, 0.899, 0.88, 0.91)],
        "supervised from scratch": [(100, 0.895, 0.88, 0.91)],
        "untrained": [(10, 0.2, 0.1, 0.3), (11, 0.25, 0.2, 0.3)],
    }
    (axis,) = draw(pictures.label_efficiency, curves).axes
    assert axis.get_xscale() == "log"
    assert [line.get_xydata().tolist() for line in axis.lines] == [
        [[x, y] for x, y, _, _ in sorted(points)] for points in curves.values()
    ]
    assert [line.get_color() for line in axis.lines] == [_COLOURS[name] for name in curves]
    bands, bars = axis.collections[::2], axis.collections[1::2]
    for band, bar, points in zip(bands, bars, curves.values(), strict=True):
        corners = {tuple(corner) for path in band.get_paths() for corner in path.vertices}
        assert corners == {(x, end) for x, _, low, high in points for end in (low, high)}
        assert [segment.tolist() for segment in bar.get_segments()] == [
            [[x, low], [x, high]] for x, _, low, high in sorted(points)
        ]
    texts = ["backbone  0.900", "raw pixels  0.899", "supervised from scratch  0.895", "untrained  0.250"]
    labels = sorted(axis.texts, key=lambda text: -text.get_position()[1])
    assert words(labels) == texts
    assert not overlaps(labels)
    assert [text.xy for text in axis.texts] == [(1000, 0.9), (1000, 0.899), (100, 0.895), (11, 0.25)]
    # 10 has no room beside 11.
    assert words(axis.get_xticklabels()) == ["1,000", "100", "11"]


def test_curves_of_one_number_of_labels_have_points(draw):
    curves = {name: [(100, 0.8, 0.7, 0.85)] for name in ("backbone", "raw pixels", "mine")}
    (axis,) = draw(pictures.label_efficiency, curves).axes
    assert words(axis.get_xticklabels()) == ["100"]
    assert not overlaps(axis.texts)


def test_heights_move_apart_as_little_as_they_can():
    assert apart(np.array([0.5, 0.9, 0.5]), 0.1) == pytest.approx([0.45, 0.9, 0.55])
    assert apart(np.array([0.3, 0.1]), 0.1).tolist() == [0.3, 0.1]
    heights = np.random.default_rng([1]).uniform(0, 1, 8)
    order = np.argsort(heights)
    far_enough = {"type": "ineq", "fun": lambda x: np.diff(x[order]) - 0.15}
    best = minimize(lambda x: ((x - heights) ** 2).sum(), heights, constraints=[far_enough], tol=1e-12)
    assert best.success
    assert apart(heights, 0.15) == pytest.approx(best.x, abs=1e-5)


def test_bars_may_have_intervals_and_rows_may_lack_columns(draw):
    rows = [
        ("kNN, k=20", {"backbone": 0.9, "raw pixels": 0.5}),
        ("fine-tuned", {"supervised": (0.7, 0.6, 0.75), "backbone": (0.8, 0.78, 0.83)}),
    ]
    figure = draw(pictures.results_chart, rows)
    (axis,) = figure.axes
    bars = {
        (round(bar.get_y() + bar.get_height() / 2, 6), to_hex(bar.get_facecolor())): bar.get_width()
        for bar in axis.patches
    }
    assert bars == {
        (0, _COLOURS["backbone"]): 0.9,
        (1, _COLOURS["raw pixels"]): 0.5,
        (2.75, _COLOURS["backbone"]): 0.8,
        (3.75, _COLOURS["supervised"]): 0.7,
    }
    assert axis.get_yticks().tolist() == [0.5, 3.25]
    intervals = [segment for lines in axis.collections for segment in lines.get_segments()]
    assert sorted(segment[:, 0].tolist() for segment in intervals) == [[0.6, 0.75], [0.78, 0.83]]
    assert sorted(words(axis.texts)) == ["0.500", "0.700", "0.800", "0.900"]
    values = {text.get_text(): text.get_position()[0] for text in axis.texts}
    assert (values["0.900"], values["0.800"]) == pytest.approx((0.908, 0.838))  # past the bar, past its interval
    assert words(figure.legends[0].get_texts()) == ["backbone", "raw pixels", "supervised"]
    assert [to_hex(patch.get_facecolor()) for patch in figure.legends[0].get_patches()] == [
        _COLOURS[name] for name in ("backbone", "raw pixels", "supervised")
    ]
    assert axis.yaxis_inverted()
    assert axis.get_xlabel() == "top-1 accuracy on test images"


def test_six_columns_of_any_names_have_their_own_colours(draw):
    names = ["backbone", "cost in $ and $", "untrained", "supervised from scratch", "ImageNet ResNet-50", "mine"]
    colours = _colours(names)
    assert len(set(colours.values())) == 6
    assert colours["backbone"] == "#0b7a75"
    assert len(set(_colours([*names, "x", "y", "z", "raw pixels"]).values())) == 10
    figure = draw(pictures.results_chart, [("a", dict.fromkeys(names, (1.0, 0.99, 1.0)))])
    assert words(figure.legends[0].get_texts())[1] == r"cost in \$ and \$"
    assert not overlaps(figure.legends[0].get_texts())


def test_an_evaluation_s_intervals_reach_its_chart():
    row = {"name": "kNN, k=20", "columns": {"backbone": {"score": 0.7, "interval_95": [0.65, 0.75], "n": 10}}}
    assert pictures.result_rows({"rows": [row]}) == [("kNN, k=20", {"backbone": (0.7, 0.65, 0.75)})]


def test_a_long_title_takes_lines_and_no_room_from_the_picture(draw):
    gray, _ = real_images()
    title = "$1 and $2: a title that is longer than the picture of one neighbour is wide"
    short, long = (draw(pictures.neighbour_sheet, gray[:1], [gray[1:2]], None, [""], title=t) for t in ("a", title))
    lines = long.get_suptitle().replace(r"\$", "$").split("\n")
    assert len(lines) > 2
    assert " ".join(lines) == title
    assert long.get_size_inches()[1] > short.get_size_inches()[1] + 0.3
    widths = [figure.axes[0].get_window_extent().width for figure in (short, long)]
    assert widths[1] == pytest.approx(widths[0], rel=0.02)


def test_names_are_drawn_as_they_are():
    assert _plain("a\nb $x$") == r"a b \$x\$"
    assert _plain("0123456789abcdef", 9) == "012...def"
    assert _plain("012345678", 9) == "012345678"
    assert _wrapped("one two three", 8) == "one two\nthree"
    assert _wrapped("a/folder/of_a_long_name.png", 12) == "a/folder/\nof_a...e.png"
    assert _wrapped("", 8) == ""
