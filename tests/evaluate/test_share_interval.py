"""The interval of a share, over images or over groups."""

import numpy as np
import pytest
from scipy.stats import binomtest

from byol.evaluate.scores import share_interval


def test_the_interval_of_a_share_is_over_groups_where_images_come_in_groups():
    right = np.repeat([True, False], 50)
    images = share_interval(right, None)
    assert images == pytest.approx(binomtest(50, 100).proportion_ci(method="wilson"))
    assert images[1] - images[0] < 0.2
    # Two patients, one all right and one all wrong: resampled whole, everything from 0 to 1 happens.
    assert share_interval(right, np.repeat([0, 1], 50)) == (0.0, 1.0)
    assert share_interval(right, np.zeros(100, int)) == (0.0, 1.0)
    # Groups of one image each are images.
    assert share_interval(right, np.arange(100)) == pytest.approx(images, abs=0.02)
