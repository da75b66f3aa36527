"""The simulator's cases on the GPU itself, by both paths: every mask and size, each with the tiles of its few SMs."""

import pytest
import torch

pytest.importorskip("triton")
import fastgpt.kernels
from benchmarks.gate.rows import attending_by
from benchmarks.softgpu.attention_cases import hopper_trials
from benchmarks.softgpu.trials import expect, judged
from fastgpt.kernels import _runtime

TRIALS = {trial.name: trial for trial in hopper_trials()}
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("path", ["gluon", "triton"])
@pytest.mark.parametrize("name", TRIALS)
def test_on_the_gpu(name, path):
    trial = TRIALS[name]
    expected = expect(trial)
    inputs = {name: moved(x) for name, x in expected.inputs.items()}
    target = _runtime.Target("cuda", "sm_90", trial.num_sms)
    with attending_by(path), _runtime.pretend(target):
        results = expected.case.run(fastgpt.kernels, inputs, [moved(x) for x in expected.upstream])
    problems = [str(v) for v in judged(trial, expected, [x.cpu() for x in results]) if not v.ok]
    assert not problems, "\n".join(problems)


def moved(x):
    return x.detach().to("cuda").requires_grad_(x.requires_grad)
