"""Numbers without labels: retrieval by hand, views that are the loader's, correlations by hand and against scipy."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torch import nn

from byol import diagnose
from byol.data.loader import HOLD_OUT_EPOCH, Loader, Normalization, load_pixels
from byol.data.open import open_source
from byol.data.source import DataError
from byol.evaluate.columns import Pixels
from byol.evaluate.unlabelled import (
    MOST_IMAGES,
    RESAMPLES,
    correlations,
    retrieved,
    unlabelled_numbers,
    view_pairs,
)
from byol.views.view import BYOL_T, BYOL_T_PRIME, View

VIEWS = (BYOL_T, BYOL_T_PRIME)
AS_IT_IS = Normalization((0.0,) * 3, (1.0,) * 3)
HALF = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


def noise(n, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


# Retrieval


def test_equal_views_of_different_images_are_all_retrieved_and_shifted_ones_never():
    rows = torch.eye(6) + 0.1
    assert retrieved(rows, rows).tolist() == [True] * 6
    assert retrieved(rows, rows.roll(1, 0)).tolist() == [False] * 6
    swapped = rows[[1, 0, 2, 3, 4, 5]]
    assert retrieved(rows, swapped).tolist() == [False, False, True, True, True, True]


def test_first_views_ask_and_second_views_answer():
    # 0 is nearest to 4, its own; 10 too, the other's. The other way about, 4 is nearest to 0 and 95 to 10, their own.
    assert retrieved(circle(0, 10), circle(4, 95)).tolist() == [True, False]
    assert retrieved(circle(4, 95), circle(0, 10)).tolist() == [True, True]


def test_another_images_first_view_is_no_answer():
    assert retrieved(circle(0, 1), circle(-20, 21)).tolist() == [True, True]


def test_nearness_is_an_angle_and_not_a_distance():
    first, second = circle(0, 60), circle(5, 80)
    lengths = torch.tensor([[30.0], [0.2]])
    assert retrieved(first, second).tolist() == [True, True]
    assert retrieved(first * lengths.flip(0), second * lengths).tolist() == [True, True]


def test_a_tie_is_not_retrieved():
    assert retrieved(circle(0, 90, 180), circle(20, -20, 180)).tolist() == [False, False, True]
    generator = torch.Generator().manual_seed(0)
    for width in (37, 64, 100, 257):  # a matrix product rounds its corners differently from its inside
        for num in (5, 13, 101, 299, 1001):
            row, other = torch.randn(2, 1, width, generator=generator)
            assert not retrieved(row.repeat(num, 1), (row + other / 3).repeat(num, 1)).any()
    assert not retrieved(torch.zeros(5, 3), torch.zeros(5, 3)).any()


# The numbers


def test_numbers_are_those_of_the_features_in_inference_mode():
    plain, first, second = noise(40), noise(40, seed=1), noise(40, seed=2)
    given = network().train()
    given[1].eval()
    modes = [module.training for module in given.modules()]
    state = {name: value.clone() for name, value in given.state_dict().items()}
    numbers = unlabelled_numbers(given, plain, first, second, normalization=HALF)
    assert [module.training for module in given.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())

    with torch.no_grad():
        y, y1, y2 = (given.eval()(HALF(images.float() / 255)) for images in (plain, first, second))
    assert numbers.effective_rank == pytest.approx(diagnose.effective_rank(y), rel=1e-4)
    assert numbers.alignment == pytest.approx(diagnose.alignment(y1, y2), rel=1e-4)
    assert numbers.uniformity == pytest.approx(diagnose.uniformity(y1), rel=1e-4)
    assert numbers.view_retrieval == pytest.approx(float(retrieved(y1, y2).double().mean()))
    assert len({numbers.effective_rank, diagnose.effective_rank(y1), diagnose.effective_rank(y2)}) == 3


def test_the_same_call_gives_the_same_bits():
    images = noise(30), noise(30, seed=1), noise(30, seed=2)
    first, second = (unlabelled_numbers(network().train(), *images, normalization=HALF) for _ in range(2))
    assert first == second


def test_raw_pixels_find_views_that_are_little_changed_and_are_at_chance_for_noise():
    plain = noise(200)
    little = (plain.int() + torch.randint(-9, 10, plain.shape, generator=torch.Generator().manual_seed(1))).clamp(
        0, 255
    )
    close = unlabelled_numbers(Pixels(), plain, plain, little.to(torch.uint8), normalization=HALF)
    assert close.view_retrieval == 1.0
    assert close.interval_95[1] == pytest.approx(1.0)
    assert close.alignment < 0.02
    far = unlabelled_numbers(Pixels(), plain, plain, noise(200, seed=2), normalization=HALF)
    # Of 200 trials at 1/200, more than 5 succeed once in 1,700 times.
    assert far.view_retrieval <= 5 / 200
    assert far.interval_95[0] <= far.chance <= far.interval_95[1]
    assert far.num_images == 200
    assert far.chance == 1 / 200


def test_wilsons_interval_by_hand():
    # Wilson 1927: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4 n^2)) / (1 + z^2 / n), here p = 3/4, n = 4.
    plain = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    for i in range(5):
        plain[i, :, i] = 255
    first, second = plain[:4], plain[[0, 1, 2, 4]]
    numbers = unlabelled_numbers(Pixels(), first, first, second, normalization=AS_IT_IS)
    z, p, n = 1.959964, 3 / 4, 4
    centre, margin = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert numbers.view_retrieval == p
    expected = ((centre - margin) / (1 + z**2 / n), (centre + margin) / (1 + z**2 / n))
    assert numbers.interval_95 == pytest.approx(expected, abs=1e-6)


def test_a_network_that_says_nothing_has_no_retrieval_and_no_rank():
    class Constant(nn.Module):
        def forward(self, x):
            return x.new_ones(len(x), 16)

    numbers = unlabelled_numbers(Constant(), noise(300), noise(300, seed=1), noise(300, seed=2), normalization=HALF)
    assert (numbers.effective_rank, numbers.alignment, numbers.uniformity) == (0.0, 0.0, 0.0)
    assert numbers.view_retrieval == 0.0


@pytest.mark.parametrize(
    ("counts", "message"),
    [((4, 4, 3), "4 images, 4 first and 3 second"), ((1, 1, 1), "1 images"), ((MOST_IMAGES + 1,) * 3, "use 2 to 2048")],
)
def test_images_that_do_not_fit_are_refused_in_one_line(counts, message):
    with pytest.raises(ValueError, match=message) as error:
        unlabelled_numbers(Pixels(), *(noise(n, 2) for n in counts), normalization=AS_IT_IS)
    assert "\n" not in str(error.value)


# Views


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten images of different sizes; the eighth is broken."""
    root = tmp_path_factory.mktemp("unlabelled")
    generator = np.random.default_rng(0)
    for i in range(10):
        pixels = generator.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i:03}.png")
    whole = (root / "007.png").read_bytes()
    (root / "007.png").write_bytes(whole[: len(whole) // 2])
    return root


def loader_of(source, pixels, size, seed, views=VIEWS):
    return Loader(source, views, pixels=pixels, size=size, batch_size=4, normalization=HALF, seed=seed)


def test_pairs_are_the_loaders_views_as_of_the_hold_out_epoch(images):
    source, pixels, _ = load_pixels(open_source(images))
    rows, first, second = view_pairs(source, pixels, VIEWS, size=16, seed=5, num_images=50)
    assert rows.tolist() == [int(i * (len(source) - 1) / 49) for i in range(50)]
    assert first.shape == second.shape == (50, 3, 16, 16)
    assert first.dtype == second.dtype == torch.uint8
    loader = loader_of(source, pixels, 16, 5)
    found = [HALF(view.float() / 255) for view in (first, second)]
    # Half a level, in units of the smallest standard deviation, and float32's rounding.
    half_a_level = 0.5 / 255 / 0.2 + 1e-5
    expected = loader.batch_of(rows, torch.full_like(rows, HOLD_OUT_EPOCH)).views
    assert max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True)) < half_a_level
    trained = loader.batch_of(rows, torch.zeros_like(rows)).views
    assert min(float((f - t).abs().max()) for f, t in zip(found, trained, strict=True)) > 0.5


def test_pairs_follow_from_the_seed_alone(images):
    source, pixels, _ = load_pixels(open_source(images))
    results = [view_pairs(source, pixels, VIEWS, size=16, seed=seed, num_images=9) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][1], results[2][1])
    # A view depends on its image and on none beside it.
    _, more, _ = view_pairs(source, pixels, VIEWS, size=16, seed=0, num_images=len(source))
    assert torch.equal(more[results[0][0]], results[0][1])


def test_one_recipe_makes_two_different_views_and_of_three_two_count(images):
    source, pixels, _ = load_pixels(open_source(images))
    _, first, second = view_pairs(source, pixels, (BYOL_T,), size=16, seed=0, num_images=6)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    three = view_pairs(source, pixels, (*VIEWS, View()), size=16, seed=0, num_images=6)
    two = view_pairs(source, pixels, VIEWS, size=16, seed=0, num_images=6)
    assert all(torch.equal(a, b) for a, b in zip(three, two, strict=True))


def test_an_unusable_image_is_left_out_and_not_replaced(folder):
    source = open_source(folder)
    rows, first, second = view_pairs(source, None, VIEWS, size=16, seed=0)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    loader = loader_of(source, None, 16, 0)
    expected = loader.batch_of(rows, torch.full_like(rows, HOLD_OUT_EPOCH)).views
    for found, wanted in zip((first, second), expected, strict=True):
        assert float((HALF(found.float() / 255) - wanted).abs().max()) < 0.5 / 255 / 0.2 + 1e-5


@pytest.mark.parametrize("num_images", [1, MOST_IMAGES + 1])
def test_a_number_of_images_out_of_range_is_refused(images, num_images):
    source, pixels, _ = load_pixels(open_source(images))
    with pytest.raises(ValueError, match=f"num_images={num_images} is not allowed; use 2 to 2048"):
        view_pairs(source, pixels, VIEWS, size=16, seed=0, num_images=num_images)


def test_one_image_alone_cannot_be_told_apart(images):
    source = open_source(images).subset([3])
    with pytest.raises(DataError, match="fewer than 2 usable images") as error:
        view_pairs(source, None, VIEWS, size=16, seed=0)
    assert "\n" not in str(error.value)


# Correlations


def runs_of(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_spearman_of_five_runs_by_hand():
    # Ranks 1 2 3 4 5 against 2 1 3 5 4: d^2 sums to 4, and 1 - 6 * 4 / (5 * 24) = 0.8. Values are far from linear.
    runs = runs_of(rank=[1.0, 10.0, 11.0, 500.0, 1e9], knn=[0.2, 0.1, 0.5, 0.9, 0.8])
    rho, low, high, num = correlations(runs)["rank"]
    assert rho == pytest.approx(0.8)
    assert num == 5
    assert -1 <= low < 0.8 < high <= 1


def test_spearman_with_ties_by_hand():
    # Ranks 1.5 1.5 3 4 against 1 2 3 4: Pearson's of these is 4.5 / sqrt(4.5 * 5).
    found = correlations(runs_of(rank=[7, 7, 8, 9], knn=[0.1, 0.2, 0.3, 0.4]))["rank"]
    assert found[0] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_rho_is_scipys_and_its_interval_that_of_a_loop_over_resamples():
    generator = np.random.default_rng(1)
    x = generator.normal(size=25)
    y = x + generator.normal(size=25)
    rho, low, high, num = correlations(runs_of(a=x, score=y), "score", seed=3)["a"]
    assert num == 25
    assert rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    draws = np.random.default_rng(3).integers(25, size=(RESAMPLES, 25))
    resampled = sorted(scipy.stats.spearmanr(x[d], y[d]).statistic for d in draws)
    assert (low, high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), rel=1e-12)
    assert low < rho < high


def test_perfect_orders_are_one_and_minus_one():
    found = correlations(runs_of(up=[1, 2, 3, 4, 5, 6], down=[-1, -4, -9, -16, -25, -36], knn=[1, 2, 3, 5, 8, 13]))
    assert found["up"] == pytest.approx((1, 1, 1, 6))
    assert found["down"] == pytest.approx((-1, -1, -1, 6))


def test_what_has_no_correlation_is_none():
    runs = runs_of(same=[3, 3, 3, 3], knn=[0.1, 0.2, 0.3, 0.4])
    assert correlations(runs) == {"same": None}
    assert correlations(runs, "same") == {"knn": None}
    assert correlations(runs_of(rank=[1, 2], knn=[0.1, 0.2])) == {"rank": None}


def test_runs_without_a_value_or_with_one_that_is_not_finite_are_left_out_one_number_at_a_time():
    runs = runs_of(a=[1.0, 2.0, 3.0, math.nan, 5.0], b=[5.0, 4.0, 3.0, 2.0, 1.0], knn=[0.1, 0.2, 0.3, 0.0, 0.5])
    runs += [{"a": 0.0, "b": -100.0}, {"a": 0.0, "knn": math.inf}, {"knn": 0.9, "c": 1.0}]
    found = correlations(runs)
    assert found["a"] == pytest.approx((1, 1, 1, 4))
    assert found["b"][3] == 5
    assert found["c"] is None


def test_the_interval_follows_from_the_seed_and_moves_no_global_state():
    generator = np.random.default_rng(0)
    runs = runs_of(a=generator.normal(size=9), knn=generator.normal(size=9))
    state = np.random.get_state()[1].copy()
    assert correlations(runs) == correlations(runs, seed=0)
    assert correlations(runs)["a"] != correlations(runs, seed=1)["a"]
    assert (np.random.get_state()[1] == state).all()


def test_runs_without_the_target_are_refused_in_one_line():
    with pytest.raises(ValueError, match="none of the 2 runs has 'knn'") as error:
        correlations(runs_of(rank=[1, 2]))
    assert "\n" not in str(error.value)
