"""What is drawn of an evaluation."""

import numpy as np
import pytest
from scipy.stats import binomtest

from byol.draw import _interval


def test_a_class_s_interval_is_over_groups_where_images_come_in_groups():
    right = np.repeat([True, False], 50)
    images = _interval(right, None)
    assert images == pytest.approx(binomtest(50, 100).proportion_ci(method="wilson"))
    assert images[1] - images[0] < 0.2
    # Two patients, one all right and one all wrong: resampled whole, everything from 0 to 1 happens.
    assert _interval(right, np.repeat([0, 1], 50)) == (0.0, 1.0)
    assert _interval(right, np.zeros(100, int)) == (0.0, 1.0)
    # Groups of one image each are images.
    assert _interval(right, np.arange(100)) == pytest.approx(images, abs=0.02)
