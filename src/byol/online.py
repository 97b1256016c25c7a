"""Probes while training: a linear classifier on detached features, and diagnosis on images never trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from byol.data.loader import HOLD_OUT_EPOCH, Loader, looked_at
from byol.diagnose import Health, Word, health, verdict
from byol.encoder import initialize
from byol.evaluate.images import evaluation_images
from byol.evaluate.knn import weighted_knn
from byol.losses import labelled_cross_entropy
from byol.methods import Method
from byol.parallel import gather

ADVICE = (
    "the embedding has collapsed: it no longer tells images apart. Try a lower --base-lr, a longer warm-up "
    "(--set warmup_steps=N), a larger batch, or, where there is one, a higher tau; metrics.jsonl shows when it began"
)


class OnlineClassifier(nn.Module):
    """Linear evaluation while training: one Linear on features that carry no gradient. Grill et al. 2020, App. D.

    It shares the optimizer and the schedule, and cannot change the encoder.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_classes)
        initialize(self)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the labelled images of the global batch. features: [B, D]. labels: [B] int64, -1 for
        unknown."""
        return labelled_cross_entropy(gather(self.linear(features.detach())), gather(labels))


@dataclass(frozen=True)
class Probe:
    """One look at held-out images."""

    step: int
    health: Health
    word: Word
    knn: float | None
    """Top-1 of weighted kNN, held-out images against at most 1,024 training images; None without labels."""
    classifier: float | None
    """Top-1 of the online classifier on the held-out images; None without labels."""

    def to_dict(self) -> dict[str, Any]:
        found = {"step": self.step, "verdict": self.word, **asdict(self.health)}
        scores = {"knn": self.knn, "classifier": self.classifier}
        return found | {name: score for name, score in scores.items() if score is not None}


class HoldOut:
    """Looks at held-out images as evaluation would: running batch-norm statistics, no gradient."""

    def __init__(self, held: Loader, bank: Loader, classifier: OnlineClassifier | None = None) -> None:
        rows = torch.arange(len(held.source))
        self._held = held
        self._rows = rows
        self._bank = bank
        self._classifier = classifier
        labelled = np.flatnonzero(bank.labels >= 0)
        self._labelled = bool((held.labels >= 0).any() and len(labelled))
        if self._labelled:
            self._bank_rows = torch.from_numpy(labelled[looked_at(bank.source.subset(labelled), 1024)])

    @torch.no_grad()
    def look(self, method: Method, step: int, *, earlier: Sequence[Health] | None = ()) -> Probe:
        """Alignment compares two views of each held-out image; all else reads the first. earlier: what looks before
        this one found, of those that count for `verdict`; None where this one does not."""
        training = method.training
        method.eval()
        try:
            pairs = [
                tuple(method.embed(self._ready(v, method)).float() for v in views)
                for views in self._pairs(self._held, self._rows)
            ]
            z1, z2 = (torch.cat(part) for part in zip(*pairs, strict=True))
            found = health(z1, z2)
            word = verdict([] if earlier is None else [*earlier, found])
            return Probe(step, found, word, *(self._scores(method) if self._labelled else (None, None)))
        finally:
            method.train(training)

    @staticmethod
    def _ready(images: Tensor, method: Method) -> Tensor:
        dtype = next(method.parameters()).dtype
        return images.to(dtype).contiguous(memory_format=torch.channels_last)

    def _pairs(self, loader: Loader, rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for part in rows.split(256):
            views = loader.batch_of(part, torch.full_like(part, HOLD_OUT_EPOCH)).views
            if len(views) == 1:  # of a method with one view: the next epoch's is the other
                views += loader.batch_of(part, torch.full_like(part, HOLD_OUT_EPOCH + 1)).views
            yield views[:2]

    def _features(self, method: Method, loader: Loader, rows: Tensor) -> Tensor:
        parts = []
        for part in rows.split(256):
            images = evaluation_images(loader.source, loader.pixels, part, loader.size).to(loader.device)
            plain = loader.normalization.in_place(images.float() / 255)
            parts.append(method.encoder(self._ready(plain, method)).float())
        return torch.cat(parts)

    def _scores(self, method: Method) -> tuple[float, float | None]:
        """Top-1 of kNN and of the online classifier, on the plain images."""
        bank_labels = self._bank.labels[self._bank_rows]
        labels = self._held.labels
        bank = self._features(method, self._bank, self._bank_rows)
        queries = self._features(method, self._held, self._rows[labels >= 0])
        bank_labels, labels = bank_labels.to(bank.device), labels[labels >= 0].to(bank.device)
        knn = float((weighted_knn(bank, bank_labels, queries, k=20) == labels).float().mean())
        if self._classifier is None:
            return knn, None
        logits = self._classifier.linear(queries.to(self._classifier.linear.weight.dtype))
        return knn, float((logits.argmax(1) == labels).float().mean())
