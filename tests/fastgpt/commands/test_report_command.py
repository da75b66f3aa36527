"""`fastgpt report`: a run's page again, several on one page; nobody's file is replaced."""

from __future__ import annotations

import os

import pytest

from fastgpt.pages.page import Page, is_ours
from fastgpt.train import run_record
from tests.fastgpt.study.test_compare_runs import write_run
from tests.support import command

pytestmark = pytest.mark.needs("tyro")


@pytest.fixture
def here(tmp_path):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", lr=0.2)
    return tmp_path


def report(here, *words):
    return command.run("report", *words, cwd=here)


def test_one_run_has_its_page_in_its_folder(here):
    done = report(here, "runs/a")
    assert (done.code, done.out, done.err) == (0, "runs/a/report.html\n", "")
    assert "Training run a" in (here / "runs" / "a" / "report.html").read_text()
    assert report(here, "runs/a").code == 0
    assert report(here, "runs/a", "--out", "deep/page.html").out == "deep/page.html\n"
    assert (here / "deep" / "page.html").read_text() == (here / "runs" / "a" / "report.html").read_text()


def test_several_runs_are_compared(here):
    done = report(here, "runs/a", "runs/b")
    assert (done.code, done.out) == (0, "comparison.html: 2 runs compared\n")
    assert "2 training runs" in (here / "comparison.html").read_text()
    assert report(here, "runs/a", "runs/b", "--out", "other.html").code == 0
    assert is_ours(here / "other.html")
    assert not (here / "runs" / "a" / "report.html").exists()


def test_what_fastgpt_did_not_write_stays(here):
    (here / "runs" / "a" / "report.html").write_text("mine")
    (here / "comparison.html").write_text("mine")
    done = report(here, "runs/a")
    assert done.code == 2
    assert (
        "RUN runs/a cannot be written to runs/a/report.html: that is a file that `fastgpt report` did not write"
        in done.err
    )
    done = report(here, "runs/a", "runs/b")
    assert done.code == 2
    assert "choose another page: --out FILE.html" in done.err
    assert {p.read_text() for p in (here / "comparison.html", here / "runs" / "a" / "report.html")} == {"mine"}
    os.mkfifo(here / "pipe")
    assert "--out pipe is a pipe or a device" in report(here, "runs/a", "--out", "pipe").err


def test_the_demos_page_stays(here):
    """It holds more than its training does, and what it keeps of that is used elsewhere."""
    page = Page("fastgpt demo", generator="fastgpt demo")
    run_record.keep(page, {"parameters": 4321})
    page.save(here / "runs" / "a" / "report.html")
    before = (here / "runs" / "a" / "report.html").read_bytes()
    done = report(here, "runs/a")
    assert done.code == 2
    assert "RUN runs/a cannot be written to runs/a/report.html: that is a file" in done.err
    assert report(here, "runs/a", "--out", "page.html").code == 0
    assert "4,321 parameters" in (here / "page.html").read_text()
    assert (here / "runs" / "a" / "report.html").read_bytes() == before


def test_what_cannot_be_read_or_written_is_one_line(here):
    done = report(here, "runs/a", "--out", "/dev/full/page.html")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    (here / "runs" / "a" / "settings.json").write_text("{")
    done = report(here, "runs/a")
    assert done.code == 2
    assert "runs/a/settings.json: corrupted" in done.err
