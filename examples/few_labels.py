# %% [markdown]
# # From a folder to a classifier, with a few labels
#
# You have a folder of images and hardly any labels. This trains a backbone on all of the images without labels, and
# then a logistic regression on its features with the few labels there are. The same classifier on the pixels
# themselves says what that was worth.
#
#     python few_labels.py          # a minute or two on one core
#     python few_labels.py --fast   # a quick look

# %%
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression

import byol
from byol.console import Terminal
from byol.data.arrays import digits
from byol.experiments.small import digits_minute

FAST = "--fast" in sys.argv
out = Path(tempfile.mkdtemp(prefix="few_labels-"))

# %% [markdown]
# ## A folder
#
# Yours is there already. Here it is made of the 5,000 handwritten digits that come along: 4,000 as PNG files whose
# names say nothing, and 1,000 kept for the test. The labels stay in `answers`, where training does not look.

# %%
images, answers = digits()
is_test = np.arange(len(images)) % 500 >= 400  # they come class by class, 500 of each
order = np.random.default_rng(0).permutation(np.flatnonzero(~is_test))
folder = out / "images"
folder.mkdir()
paths = []
for number, i in enumerate(order):
    paths.append(folder / f"{number:04}.png")
    Image.fromarray(images[i, :, :, 0]).save(paths[-1])
answers, test_images, test_answers = answers[order], images[is_test], answers[is_test]
print(f"{len(paths)} images in {folder}")

# %% [markdown]
# ## A backbone, without labels
#
# `byol.pretrain(folder, out / "run")` alone would do: network, batch, schedule and views then follow from the images.
# `digits_minute` is a recipe that was tuned for digits: what is handwritten must not be mirrored, say.

# %%
with Terminal(plan=False) as terminal:
    byol.pretrain(folder, out / "run", digits_minute(), steps=300 if FAST else 400, observer=terminal)

# %% [markdown]
# ## Features
#
# `embed` takes paths, arrays and Pillow's images, and looks at them as evaluation does.

# %%
encoder = byol.load(out / "run")
features, test_features = encoder.embed(paths), encoder.embed(test_images)
pixels = np.stack([np.asarray(Image.open(path)) for path in paths]).reshape(len(paths), -1) / 255
test_pixels = test_images.reshape(len(test_images), -1) / 255
print(f"{features.shape[1]} features of each image, {pixels.shape[1]} pixels")


# %% [markdown]
# ## A classifier, from few labels
#
# Which images have labels is drawn several times, for with so few it matters; both columns get the same ones. (The
# features need no scaling here, and pixels do better without.)


# %%
def accuracy(x, test_x, labelled):
    classifier = LogisticRegression(max_iter=1000)
    return classifier.fit(x[labelled], answers[labelled]).score(test_x, test_answers)


def draw(per_class, seed):
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.choice(np.flatnonzero(answers == c), per_class, replace=False) for c in range(10)])


counts = (1, 2, 5, 10, 20, 50)
curves = {"features": [], "pixels": []}
print("labels a class   features   pixels")
for count in counts:
    drawn = [draw(count, seed) for seed in range(3 if FAST else 10)]
    curves["features"].append(np.mean([accuracy(features, test_features, each) for each in drawn]))
    curves["pixels"].append(np.mean([accuracy(pixels, test_pixels, each) for each in drawn]))
    print(f"{count:14}   {curves['features'][-1]:8.3f}   {curves['pixels'][-1]:6.3f}")

# %% [markdown]
# Read it sideways: how many labels do the pixels need to be as good as the features are with five? More training
# (`digits_demo` in place of `digits_minute`) makes that more.

# %%
for name, curve in curves.items():
    plt.plot(counts, curve, marker="o", label=name)
plt.xscale("log")
plt.xticks(counts, [str(count) for count in counts])
plt.xlabel("labels a class")
plt.ylabel("accuracy on 1,000 test images")
plt.legend()
plt.savefig(out / "curve.png")
print(f"the curve is in {out / 'curve.png'}")
