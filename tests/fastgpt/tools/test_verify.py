"""The self-check covers every public kernel, passes here, and notices a kernel that is wrong, broken or missing."""

from __future__ import annotations

import json

import pytest
import torch

from fastgpt import cli, kernels
from fastgpt.base.settings import SettingError
from fastgpt.kernels import _random, support
from fastgpt.tools import verify
from tests.support import philox

pytest.importorskip("triton")

CHEAP = ("layer_norm", "cross_entropy")


def test_every_public_kernel_has_a_case():
    assert {*kernels.__all__} - {"interpret", "reference"} == set(verify.names()) == set(verify.CASES)


@pytest.fixture(scope="module")
def whole():
    return verify.verify("cpu")


def test_all_kernels_pass(whole):
    assert whole.ok, str(whole)
    assert whole.brief.startswith("self-check of 9 kernels: ")
    assert {row.kernel for row in whole.rows} == set(verify.names())
    assert {row.dtype for row in whole.rows} == {"float32", "float16", "bfloat16"}
    assert all(0 <= row.error < 0.1 for row in whole.rows)
    assert sum(row.grad_error > 0 for row in whole.rows if row.grad_error is not None) > 100


def test_what_is_printed_is_the_rule(whole):
    """Error within twice torch's, three times for gradients; or within what is printed as allowed, never less."""
    for row in whole.rows:
        assert row.error <= row.allowed
        assert row.allowed >= 2 * row.torch_error
        assert row.error <= 2 * row.torch_error or row.allowed > 2 * row.torch_error
        assert (row.grad_error is None) == (row.torch_grad_error is None) == (row.grad_allowed is None)
        assert row.by_rounding == (
            row.error > 2 * row.torch_error or (row.grad_error or 0.0) > 3 * (row.torch_grad_error or 0.0)
        )
        if row.grad_error is not None:
            assert row.grad_error <= row.grad_allowed
            assert row.grad_allowed >= 3 * row.torch_grad_error
    text = str(whole)
    assert all(len(line) <= 80 for line in text.splitlines()[:-1])
    by_rounding = sum(row.by_rounding for row in whole.rows)
    assert f"150 checks, all within budget ({by_rounding} by what roundings make); on the CPU" in text
    lines = [line.split() for line in text.splitlines() if line.endswith((" ok", " OVER"))]
    assert len(lines) == len(whole.rows)
    for *_, error, torch_error, allowed, grad_error, torch_grad_error, grad_allowed, verdict in lines:
        assert verdict == "ok"
        assert float(error) <= float(allowed) >= 1.9 * float(torch_error)  # of the two digits that are printed
        if grad_error == "-":
            assert torch_grad_error == grad_allowed == "-"
        elif "." in grad_allowed:  # else only one digit is printed
            assert float(grad_error) <= float(grad_allowed) >= 2.8 * float(torch_grad_error)
    assert " ".join(verify.RULE.split()) in " ".join(text.split())


def test_a_case_without_gradients_has_no_figures_of_them(whole):
    rows = [row for row in whole.rows if row.grad_error is None]
    assert {row.label for row in rows} == {"scores of 100 and more"}
    record = [row for row in whole.record()["rows"] if row["label"] == rows[0].label]
    assert {(row["grad_error"], row["torch_grad_error"], row["grad_allowed"]) for row in record} == {(None,) * 3}
    assert rows[0].figures()[3:] == ("-", "-", "-")


def test_what_is_out_of_the_rule_is_not_ok(monkeypatch):
    """Three times as far from float64 as the larger of torch and rounding: OVER, and the printed figures say so."""

    def far(x, **kwargs):
        y = kernels.reference.layer_norm(x, **kwargs)
        return y + (y.detach().double().abs() * 2**-24 * 50).to(y.dtype)

    monkeypatch.setattr(kernels, "layer_norm", far)
    rows = [row for row in verify.verify("cpu", ("layer_norm",)).rows if row.dtype == "float32"]
    for row in rows:
        assert row.verdict == "OVER"
        assert row.error > row.allowed >= 2 * row.torch_error


def wrong_output(*args, **kwargs):
    return kernels.reference.layer_norm(*args, **kwargs) * 1.001


def wrong_gradient(x, **kwargs):
    return kernels.reference.layer_norm(x, **kwargs) + (x - x.detach()) * 0.01


def nan_output(*args, **kwargs):
    return kernels.reference.layer_norm(*args, **kwargs) * torch.nan


@pytest.mark.parametrize("wrong", [wrong_output, wrong_gradient, nan_output])
def test_a_wrong_kernel_is_noticed(monkeypatch, wrong):
    assert verify.verify(only=("layer_norm",)).ok
    monkeypatch.setattr(kernels, "layer_norm", wrong)
    report = verify.verify(only=("layer_norm",))
    assert not report.ok
    assert all(row.used > 1 for row in report.rows if row.dtype == "float32")
    assert " OVER\n" in str(report) == report.brief
    assert "FAILED" in str(report)


def test_a_kernel_that_raises_is_a_row_and_the_others_still_count(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of everything\nsecond line")

    monkeypatch.setattr(kernels, "layer_norm", broken)
    report = verify.verify(only=CHEAP)
    assert not report.ok
    assert {row.problem for row in report.rows if row.kernel == "layer_norm"} == {"RuntimeError: out of everything"}
    assert all(row.ok for row in report.rows if row.kernel == "cross_entropy")


def test_a_kernel_without_a_case_is_a_failure(monkeypatch):
    monkeypatch.delitem(verify.CASES, "layer_norm")
    report = verify.verify(only=("layer_norm",))
    assert not report.ok
    assert "no self-check" in str(report)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_the_materialised_mask_is_philox(p):
    for key in ((0, 0), (7, 5), (2**31 - 2, 2**31 - 2), (2**40 + 3, 2**33 + 1)):
        seed = torch.tensor(key)
        assert torch.equal(_random.materialised_mask(seed, p, 3, 37, 50), philox.keep_mask(seed, p, 3, 37, 50))


def test_unknown_kernel():
    with pytest.raises(SettingError, match=r"only='rms_norm' must be one of .*layer_norm"):
        verify.verify(only=("rms_norm",))


def test_without_triton(monkeypatch):
    monkeypatch.setattr(support, "has_triton", lambda: False)
    with pytest.raises(RuntimeError, match="pip install triton"):
        verify.verify()


def test_leaves_torchs_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    verify.verify(only=("cross_entropy",))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.needs("tyro")
def test_command(capsys, monkeypatch):
    assert cli.main(["verify", "--only", *CHEAP]) == 0
    assert "33 checks, all within budget" in capsys.readouterr().out
    assert cli.main(["verify", "--only", "cross_entropy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert [row["kernel"] for row in found["rows"]] == ["cross_entropy"] * 15
    monkeypatch.setattr(kernels, "layer_norm", wrong_output)
    assert cli.main(["verify", "--only", "layer_norm"]) == 1


def test_a_kernel_that_writes_into_what_it_is_given_is_noticed(monkeypatch):
    """Whether it spoils an input or an incoming gradient, and also where its own results are right."""

    class Spoils(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            kept = grad.clone()
            grad.zero_()
            return kept

    def spoils_x(x, **kwargs):
        y = kernels.reference.layer_norm(x, **kwargs)
        x.data.zero_()
        return y

    def spoils_gradient(x, **kwargs):
        return Spoils.apply(kernels.reference.layer_norm(x, **kwargs))

    for wrong, what in ((spoils_x, "x"), (spoils_gradient, "the gradient of result 0")):
        monkeypatch.setattr(kernels, "layer_norm", wrong)
        report = verify.verify(only=("layer_norm",))
        assert {row.problem for row in report.rows} == {f"ValueError: writes into {what}"}
        assert not any(row.ok for row in report.rows)


def test_without_gradients_being_recorded():
    with torch.no_grad():
        assert verify.verify(only=("layer_norm",)).ok


def test_a_report_that_cannot_be_written_is_no_kernels_fault(monkeypatch, tmp_path):
    for path, why in ((tmp_path / "none" / "ratios.jsonl", "No such file"), (tmp_path, "Is a directory")):
        monkeypatch.setenv("FASTGPT_BUDGET_REPORT", str(path))
        with pytest.raises(
            ValueError, match=rf"FASTGPT_BUDGET_REPORT: .* cannot be written to \({why}.*name a file in"
        ):
            verify.verify(only=("layer_norm",))


@pytest.mark.needs("tyro")
def test_the_json_of_a_kernel_that_gives_nan_is_json(capsys, monkeypatch):
    monkeypatch.setattr(kernels, "layer_norm", nan_output)
    assert cli.main(["verify", "--only", "layer_norm", "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert not found["ok"]
    assert {(row["used"], row["error"], row["ok"]) for row in found["rows"]} == {(None, None, False)}
