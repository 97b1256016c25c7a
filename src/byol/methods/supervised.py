"""Supervised training on the same views: what labels are worth, and not a self-supervised method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from byol.encoder import Encoder
from byol.losses import labelled_cross_entropy
from byol.methods import Method, Out
from byol.parallel import gather
from byol.views.view import BYOL_T, BYOL_T_PRIME


class Supervised(Method):
    """Cross-entropy of a linear classifier and the encoder, the mean over both views; images without a label are
    left out. The reference that self-supervised results stand beside (Grill et al. 2020, section 4)."""

    views = (BYOL_T, BYOL_T_PRIME)

    def __init__(self, encoder: Encoder, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.dim, num_classes)

    def forward(self, x1: Tensor, x2: Tensor, *, labels: Tensor) -> Out:  # type: ignore[override]
        y1, y2 = self.encoder(x1), self.encoder(x2)
        logits = torch.stack([self.classifier(y1), self.classifier(y2)], dim=1)
        # How many are labelled may differ from process to process.
        labels = gather(labels).repeat_interleave(2)
        loss = labelled_cross_entropy(gather(logits).flatten(0, 1), labels)
        return Out(loss=loss, features=y1, embedding=y1)

    def embed(self, x: Tensor) -> Tensor:
        return self.encoder(x)
