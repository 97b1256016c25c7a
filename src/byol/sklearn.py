"""Self-supervised features as a scikit-learn transformer, on 2-D arrays whose rows are images."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from byol.console import Terminal
from byol.data.loader import Normalization
from byol.options import Options
from byol.pipeline import Silent, how_to_open, open_for_training, ready
from byol.plan import device_of, plan
from byol.trained import TrainedEncoder

ROWS_AT_ONCE = 1024


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Pre-trains a backbone on the rows of X without labels, and transforms rows into its features.

    image_shape: (H, W) or (H, W, C) of the image that a row is, in C order. None: the smallest gray square that holds a
        row, black where it is larger.
    method: a name of `byol list methods` that needs no labels. backbone: a name of timm's, or the rule's.
    epochs, steps: how long to train, one of the two; by default as docs/defaults.md says, which is long.
    batch_size: images in a step, at most all there are. image_size: side of a view, px.
    value_range: the values that are black and white. None: 0 and 255 of uint8, else the least and the greatest of the X
        of `fit`. In between they become 8 bits, and what lies outside is clipped.
    settings: further fields of `byol.Options`, such as {"method_args": {"tau": 0.9}}.
    device: "cpu", "cuda", or None for the better one there is.
    random_state: int, numpy.random.RandomState or None. With an int a machine gives the same features again.
    verbose: whether to show on stderr how it goes.

    Fitted: encoder_, a `TrainedEncoder`; run_, all that determined it; image_shape_ (H, W, C); value_range_;
    n_features_in_; feature_names_in_ where X has names.

    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> Embedder(image_shape=(8, 8), steps=1, batch_size=16, device="cpu").fit_transform(X[:20]).shape
    (20, 256)
    """

    def __init__(
        self,
        image_shape: tuple[int, ...] | None = None,
        *,
        method: str = "byol",
        backbone: str | None = None,
        epochs: float | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        image_size: int | None = None,
        value_range: tuple[float, float] | None = None,
        settings: dict[str, Any] | None = None,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.image_shape = image_shape
        self.method = method
        self.backbone = backbone
        self.epochs = epochs
        self.steps = steps
        self.batch_size = batch_size
        self.image_size = image_size
        self.value_range = value_range
        self.settings = settings
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Embedder:
        """Train on the rows of X [N, H * W * C], N at least 2; y is not used. ValueError, in one line, for what does
        not fit."""
        X = validate_data(self, X, ensure_min_samples=2)
        self.image_shape_ = self._image_shape(X.shape[1])
        self.value_range_ = self._value_range(X)
        self._train(self._images(X))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """[N, D] float32: the encoder's features of rows."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        try:
            return self.encoder_.to(device_of(self._options())).embed(self._images(X))
        finally:
            self.encoder_.cpu()  # whoever loads it need not have a GPU

    @property
    def _n_features_out(self) -> int:
        return self.encoder_.dim

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _options(self) -> Options:
        given = {
            name: getattr(self, name)
            for name in ("method", "backbone", "epochs", "steps", "batch_size", "image_size", "device")
        }
        given = {name: value for name, value in given.items() if value is not None}
        # Whether bfloat16 is faster is found by trying, which may end otherwise the next time.
        return Options(precision="32", hold_out=0.0).changed(given | (self.settings or {})).checked()

    def _image_shape(self, num: int) -> tuple[int, int, int]:
        if self.image_shape is None:
            side = math.isqrt(num - 1) + 1
            return side, side, 1
        shape = tuple(self.image_shape)
        if len(shape) not in (2, 3) or any(side < 1 for side in shape) or math.prod(shape) != num:
            raise ValueError(
                f"image_shape={self.image_shape} does not fit rows of {num} features; use (H, W) or (H, W, C) of which "
                "the product is as large"
            )
        return shape[0], shape[1], shape[2] if len(shape) == 3 else 1

    def _value_range(self, X: np.ndarray) -> tuple[float, float]:
        if self.value_range is not None:
            low, high = self.value_range
            if not low < high:
                raise ValueError(f"value_range={self.value_range} is (low, high), low < high")
            return float(low), float(high)
        if X.dtype == np.uint8:
            return 0.0, 255.0
        low, high = float(X.min()), float(X.max())
        return low, high if high > low else low + 1

    def _images(self, X: np.ndarray) -> np.ndarray:
        """[N, H, W, C] uint8 of rows."""
        height, width, channels = self.image_shape_
        low, high = self.value_range_
        images = np.zeros((len(X), height * width * channels), np.uint8)
        for start in range(0, len(X), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            # In float64 whatever the type: the same value is the same grey level.
            scaled = (X[rows].astype(np.float64) - low) / (high - low)
            images[rows, : X.shape[1]] = np.rint(255 * scaled.clip(0, 1))
        return images.reshape(len(X), height, width, channels)

    def _train(self, images: np.ndarray) -> None:
        options = self._options()
        seed = self.random_state
        if seed is None or isinstance(seed, np.random.RandomState):
            seed = int(check_random_state(seed).randint(2**31))
        if options.batch_size is not None:
            options = replace(options, batch_size=min(options.batch_size, len(images)))
        options = replace(options, seed=int(seed)).checked()
        with Terminal() if self.verbose else nullcontext(Silent()) as observer:
            source, pixels = open_for_training(images, observer, **how_to_open(options))
            run = self.run_ = plan(options, source, pixels)
            training, _ = ready(run, source, pixels, Path(), 0.0)
            # The steps alone, of which nothing is written: a fitted estimator is kept by whoever has it.
            batches = training.loader.batches(0, run.total_steps * run.accumulate)
            training.module.train()
            for step in range(run.total_steps):
                loss = float(training.step(step, [next(batches) for _ in range(run.accumulate)])["loss"])
                if not math.isfinite(loss):
                    raise ValueError(f"the loss is not finite in step {step}; use a smaller base_lr in `settings`")
                observer.working("training", step + 1, run.total_steps)
        encoder = training.method.encoder
        self.encoder_ = TrainedEncoder(encoder.spec, Normalization(run.mean, run.std), run.value_range)
        self.encoder_.model.load_state_dict(encoder.model.state_dict())
        self.encoder_.eval()
