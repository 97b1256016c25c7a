"""Checkpoints in the layout of DeepMind's BYOL code, of weights made here: the classes that such a pickle names stand
in modules of their own, and JAX, Haiku and optax are not needed to write it."""

from __future__ import annotations

import collections
import sys
import types
from contextlib import contextmanager

import dill
import numpy as np


class FlatMapping:
    def __init__(self, mapping):
        self.mapping = mapping

    def __reduce__(self):
        return FlatMapping, (self.mapping,)


class DeviceArray:
    """An array on a device, which is pickled by way of NumPy's."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        function, arguments, state = self.value.__reduce__()
        return reconstruct_device_array, (function, arguments, state, {"weak_type": False, "named_shape": {}})


def reconstruct_device_array(*_):
    raise AssertionError("called")


State = collections.namedtuple(
    "_ByolExperimentState", "online_params target_params online_state target_state opt_state"
)
ScaleByLarsState = collections.namedtuple("ScaleByLarsState", "mu")

WHERE = {
    "haiku._src.data_structures": FlatMapping,
    "byol_reference.byol_experiment": State,
    "byol_reference.utils.optimizers": ScaleByLarsState,
    "jax._src.device_array": (DeviceArray, reconstruct_device_array),
}


@contextmanager
def modules():
    """Within it the classes stand where a pickle is to look for them."""
    before = set(sys.modules)
    for place, members in WHERE.items():
        parts = place.split(".")
        for n in range(1, len(parts) + 1):
            name = ".".join(parts[:n])
            if name not in sys.modules:
                sys.modules[name] = types.ModuleType(name)
                if n > 1:
                    setattr(sys.modules[".".join(parts[: n - 1])], parts[n - 1], sys.modules[name])
        for member in members if type(members) is tuple and len(members) == 2 else (members,):
            member.__module__ = place
            setattr(sys.modules[place], member.__qualname__, member)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def resnet(blocks, root="res_net50", *, width=64, bottleneck=True, seed=0):
    """(parameters, state) of Haiku's ResNet of version 1 with random weights and statistics, all by module."""
    generator = np.random.default_rng(seed)
    params, state = {}, {}

    def conv(name, kernel, given, out):
        scale = (2 / (kernel * kernel * given)) ** 0.5
        params[f"{root}/~/{name}"] = {"w": generator.normal(0, scale, (kernel, kernel, given, out)).astype(np.float32)}

    def norm(name, out):
        shape = (1, 1, 1, out)
        params[f"{root}/~/{name}"] = {
            "offset": generator.normal(0, 0.1, shape).astype(np.float32),
            "scale": generator.uniform(0.5, 1.5, shape).astype(np.float32),
        }
        for average, values in (("mean", generator.normal(0, 0.2, shape)), ("var", generator.uniform(0.3, 2, shape))):
            state[f"{root}/~/{name}/~/{average}_ema"] = {
                "average": values.astype(np.float32),
                "counter": np.array(1000, np.int32),
                "hidden": (values * 0.7).astype(np.float32),
            }

    conv("initial_conv", 7, 3, width)
    norm("initial_batchnorm", width)
    given = width
    for group, count in enumerate(blocks):
        inner = width << group
        out = 4 * inner if bottleneck else inner
        for block in range(count):
            at = f"block_group_{group}/~/block_{block}/~"
            if block == 0:
                conv(f"{at}/shortcut_conv", 1, given, out)
                norm(f"{at}/shortcut_batchnorm", out)
            layers = [(1, inner), (3, inner), (1, out)] if bottleneck else [(3, inner), (3, inner)]
            for n, (kernel, width_out) in enumerate(layers):
                conv(f"{at}/conv_{n}", kernel, given if n == 0 else inner, width_out)
                norm(f"{at}/batchnorm_{n}", width_out)
            given = out
    return params, state


def checkpoint(params, state, *, wrap=lambda value: value, step=1000, **extra):
    """The bytes of a checkpoint. wrap: each array of the online network."""
    heads = {"projector/linear": {"w": np.ones((4, 2), np.float32), "b": np.zeros(2, np.float32)}}
    heads |= {
        "classifier": {"w": np.ones((4, 3), np.float32)},
        "predictor/linear_1": {"w": np.ones((2, 2), np.float32)},
    }
    target = {"projector/linear": {"w": np.full((4, 2), 9, np.float32)}}

    def flat(mapping):
        return FlatMapping(
            {module: FlatMapping({k: wrap(v) for k, v in held.items()}) for module, held in mapping.items()}
        )

    with modules():
        optimizer = [(), ScaleByLarsState(mu=flat(target)), ()]
        held = State(flat({**params, **heads}), flat(target), flat(state), flat(target), optimizer)
        value = {"experiment_state": held, "step": step, "rng": np.array([0, 42], np.uint32), **extra}
        return dill.dumps(value, protocol=2)
