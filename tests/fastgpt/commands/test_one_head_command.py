"""OneHeadLM from the command line: trained by its preset, then sampled, scored and looked into as any run."""

import pytest

from tests.support import command

pytestmark = pytest.mark.needs("tyro", "rich", "tiktoken")

SMALL = ["--preset", "one-head", "--tokenizer", "shakespeare", "--d-model", "8", "--max-len", "8", "--batch-size", "2"]
QUIET = ["--steps", "2", "--eval-batches", "1", "--no-tensorboard", "--device", "cpu"]


def test_it_is_trained_sampled_scored_and_drawn(tmp_path):
    def run(*argv):
        done = command.run(*argv, cwd=tmp_path)
        assert done.code == 0, done.err
        return done.out

    assert "step 2: saved runs/run/checkpoints" in run("train", *SMALL, *QUIET)
    assert run("sample", "runs/run", "To be", "--max-new-tokens", "12", "--top-k", "3", "--seed", "1").startswith(
        "To be"
    )
    assert "perplexity" in run("eval", "runs/run", "--max-batches", "1")
    assert "attention.html" in run("inspect", "runs/run", "To be")
    assert "step 2: saved runs/more" in run("train", "--init-from", "runs/run", *QUIET, "--name", "more")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", *SMALL, "--n-layers", "2"], "--n-layers 2 is no setting of preset one-head, which has vocab_size"),
        (["train", *SMALL[:4], "--d-model", "0"], "--d-model 0 must be an integer, at least 1"),
        (["train", "--preset", "onehead"], "--preset onehead must be one of gpt2, "),
    ],
)
def test_mistakes_are_named_by_their_options(tmp_path, argv, message):
    done = command.run(*argv, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"fastgpt train: error: {message}")
    assert done.err.count("\n") == 1
