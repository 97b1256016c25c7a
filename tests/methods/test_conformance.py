"""Every method keeps the promises of the contract, one at a time."""

import pytest
import torch

from byol.conformance import CHECKS, batch, descend, forward, make
from byol.names import METHODS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_its_promises(name, check):
    check(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_computes_the_same_steps(name):
    found = []
    for device in ("cpu", "cuda"):
        method = make(name).to(device)
        for seed in (0, 1):
            views, given = batch(method, seed=seed)
            given = {n: value if n == "key" else value.to(device) for n, value in given.items()}
            out = forward(method, [view.to(device) for view in views], given)
            method.zero_grad()
            out.loss.backward()
            gradients = [p.grad.cpu() for p in method.parameters() if p.grad is not None]
            descend(method)
            method.after_step(seed / 2, [out.detach()])
        found.append((out.loss.cpu(), gradients, {n: value.cpu() for n, value in method.state_dict().items()}))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)
