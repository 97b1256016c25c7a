# %% [markdown]
# # A method inside your own Lightning Trainer
#
# The package trains with a loop of its own. Where you have a Trainer with your callbacks, loggers and clusters, a
# method fits into a LightningModule of a few lines. It needs `pip install lightning`, which this package does not.
#
#     python own_lightning.py          # a minute or two on one core
#     python own_lightning.py --fast   # a quick look

# %%
import sys
from dataclasses import replace

import lightning
import torch
from torch.utils.data import DataLoader, IterableDataset

from byol.data.loader import Loader, data_statistics, load_pixels
from byol.data.open import open_source
from byol.encoder import Encoder, EncoderSpec, initialize
from byol.methods.byol import BYOL
from byol.views.view import View

steps = 30 if "--fast" in sys.argv else 400
lightning.seed_everything(0, verbose=False)

# %% [markdown]
# ## Views, as a data set of batches
#
# A batch is a function of its number, so the data set is a loop over numbers. Your own data set and augmentations do as
# well: the method wants two tensors [B, C, S, S] of the same images.

# %%
source, pixels, _ = load_pixels(open_source("digits"))
strong = View(crop_area=(0.5, 1.0), rotate_degrees=20.0, shear=0.2, flip=0.0, saturation=0.0, hue=0.0, gray=0.0)
gentle = replace(strong, crop_area=(0.8, 1.0), rotate_degrees=10.0, shear=0.1, jitter=0.0, blur=0.0)
loader = Loader(
    source,
    (strong, gentle),
    pixels=pixels,
    size=28,
    batch_size=128,
    normalization=data_statistics(source, pixels),
    seed=0,
)


class Views(IterableDataset):
    def __iter__(self):
        for batch in loader.batches(0, steps):
            yield batch.views


# %% [markdown]
# ## The module
#
# Two hooks: `training_step` gives the loss, and `optimizer_step` calls the method's `after_step` once the optimizer is
# done. (`on_train_batch_end` would move BYOL's target too often where gradients are accumulated.)


# %%
class Module(lightning.LightningModule):
    def __init__(self, method):
        super().__init__()
        self.method = method
        self.outs = []
        self.losses = []

    def training_step(self, views, batch_index):
        out = self.method(*views)
        self.outs.append(out.detach())
        self.losses.append(out.loss.item())
        return out.loss

    def optimizer_step(self, *arguments, **named):
        progress = self.trainer.global_step / steps  # of the steps before this one
        super().optimizer_step(*arguments, **named)
        self.method.after_step(progress, self.outs)
        self.outs = []

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1.4e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.4e-3, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


# %% [markdown]
# ## The Trainer
#
# It is as you like it; this one only trains.

# %%
small = {"layers": [1, 1, 1, 0], "channels": [16, 32, 128, 128], "stem_type": "deep", "stem_width": 8}
encoder = Encoder(EncoderSpec("resnet18", image_size=28, channels=1, args=small))
initialize(encoder)
module = Module(BYOL(encoder, hidden=256, out=128, tau=0.8))
target_before = [p.clone() for p in module.method.target.parameters()]

trainer = lightning.Trainer(
    max_steps=steps,
    accelerator="auto",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    enable_progress_bar=False,
)
trainer.fit(module, DataLoader(Views(), batch_size=None))

# %%
first, last = (sum(part) / len(part) for part in (module.losses[:10], module.losses[-10:]))
now = [p.cpu() for p in module.method.target.parameters()]
moved = sum(float((p - before).norm()) for p, before in zip(now, target_before, strict=True))
print(f"{trainer.global_step} steps: loss {first:.3f} at first, {last:.3f} at last; the target moved by {moved:.2f}")
