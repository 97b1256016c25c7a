"""CIFAR-10 without labels on one GPU: BYOL with a ResNet-18, linear evaluation, and how many minutes it took.

    python examples/cifar10_gpu.py CIFAR10 OUT

CIFAR10 is a folder with train.parquet and test.parquet. Stopped, it goes on where it was when called again. OUT gets
the run, its log (metrics.jsonl) and result.json with the minutes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from byol import Options, pretrain
from byol.console import Terminal
from byol.evaluate.columns import BACKBONE
from byol.evaluate.protocols import Settings
from byol.evaluation import evaluate_run
from byol.views.view import View

RECIPE = Options(
    backbone="resnet18",
    stem="3x3",
    image_size=32,
    method_args={"hidden": 4096, "out": 256, "tau": 0.99},
    # Table 6 of the paper without blur, of which 32 px leave nothing to see.
    views=(View(style="torchvision", blur=0.0), View(style="torchvision", blur=0.0, solarize=0.2)),
    optimizer="lars",
    base_lr=2.0,
    bias_lr=0.5,
    weight_decay=1e-5,
    warmup_epochs=10,
    batch_size=256,
    epochs=500,
    hold_out=0.0,
)


def main(data: str, out: Path, recipe: Options = RECIPE) -> dict[str, Any]:
    """Train, or go on, and evaluate. Returns what result.json holds: accuracies by protocol, minutes of training."""
    with Terminal() as terminal:
        pretrain(data, out, recipe, resume=(out / "run.json").is_file(), observer=terminal)
        settings = Settings(protocols=("knn", "linear"))
        evaluated = evaluate_run(out, data, settings=settings, observer=terminal).whole().found
    last = json.loads((out / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    result = {row["name"]: row["columns"][BACKBONE]["score"] for row in evaluated["rows"]}
    result |= {"minutes": last["seconds"] / 60, "images_per_second": last["images_per_second"]}
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the folder CIFAR10")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(main(arguments.data, arguments.out), indent=1))
