# %% [markdown]
# # A method inside your own PyTorch loop
#
# A method of this package is an `nn.Module`: it takes views of images and gives a loss. The loop, the optimizer and
# the schedule can be yours. Here BYOL trains on digits that way.
#
#     python own_loop.py          # a minute or two on one core
#     python own_loop.py --fast   # a quick look

# %%
import math
import sys
from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from byol.data.loader import Loader, data_statistics, load_pixels
from byol.data.open import open_source
from byol.encoder import Encoder, EncoderSpec, initialize
from byol.evaluate.features import extract
from byol.methods.byol import BYOL
from byol.views.view import View

steps = 60 if "--fast" in sys.argv else 400
torch.manual_seed(0)

# %% [markdown]
# ## Images and their views
#
# A loader is a function of the batch's number: `loader.batches(0, 100)` are the first hundred batches, the same ones
# every time. You can leave it out: to a method any two tensors [B, C, S, S] of the same images are views.

# %%
source, pixels, _ = load_pixels(open_source("digits"))
strong = View(crop_area=(0.5, 1.0), rotate_degrees=20.0, shear=0.2, flip=0.0, saturation=0.0, hue=0.0, gray=0.0)
gentle = replace(strong, crop_area=(0.8, 1.0), rotate_degrees=10.0, shear=0.1, jitter=0.0, blur=0.0)
normalization = data_statistics(source, pixels)
loader = Loader(source, (strong, gentle), pixels=pixels, size=28, batch_size=128, normalization=normalization, seed=0)

# %% [markdown]
# ## The method
#
# Any timm model can be the encoder. `initialize` draws its weights as BYOL's authors did.

# %%
small = {"layers": [1, 1, 1, 0], "channels": [16, 32, 128, 128], "stem_type": "deep", "stem_width": 8}
encoder = Encoder(EncoderSpec("resnet18", image_size=28, channels=1, args=small))
initialize(encoder)
method = BYOL(encoder, hidden=256, out=128, tau=0.8)

# %% [markdown]
# ## The loop
#
# All of it is yours but one line: `after_step` is what the method does once a step, after the optimizer. For BYOL the
# target follows there. Of methods without such state it does nothing, so call it always.

# %%
optimizer = torch.optim.AdamW(method.parameters(), lr=0.0, weight_decay=1e-4)


def learning_rate(step, peak=1.4e-3, warmup=steps // 10):
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def few_shot_accuracy():
    """On 1,000 digits that are in no batch, from 10 labels a class."""
    test = open_source("digits", part="test")
    test_source, test_pixels, _ = load_pixels(test)
    how = {"mean": normalization.mean, "std": normalization.std, "size": 28}
    rows = np.concatenate([np.flatnonzero(source.labels == c)[:10] for c in range(10)])
    classifier = LogisticRegression(max_iter=2000)
    classifier.fit(extract(encoder, pixels[rows], **how).numpy(), source.labels[rows])
    return classifier.score(extract(encoder, test_pixels, **how).numpy(), test_source.labels)


before = few_shot_accuracy()
losses = []
method.train()
for step, batch in enumerate(loader.batches(0, steps)):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    result = method(*batch.views)
    optimizer.zero_grad()
    result.loss.backward()
    optimizer.step()
    method.after_step(step / steps, [result.detach()])
    losses.append(result.loss.item())
    if (step + 1) % (steps // 5) == 0:
        print(f"step {step + 1}: loss {np.mean(losses[-10:]):.3f}")

print(f"accuracy from 10 labels a class: {before:.3f} before training, {few_shot_accuracy():.3f} after")

# %% [markdown]
# ## What is left of it
#
# `encoder.model` is timm's model, to use, save and load as any other.

# %%
print(f"{sum(p.numel() for p in encoder.model.parameters()):,} weights of a {type(encoder.model).__name__}")
