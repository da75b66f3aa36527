"""Of the processes of one job, one speaks: whoever else's logger it is."""

from __future__ import annotations

import logging
import warnings

import pytest

from fastgpt.commands._ranks import quiet
from fastgpt.parallel.world import World


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_is_heard(rank, capsys, caplog, recwarn):
    with quiet(World(rank, 2, rank, 2)):
        for name in ("fastgpt", "torch._inductor", "elsewhere"):
            logging.getLogger(name).critical("of %s", name)
        warnings.warn("one of Python's", stacklevel=1)
        print("a line")
    heard = rank == 0
    logged = [record.getMessage() for record in caplog.records]
    assert ("of fastgpt" in logged) == ("of elsewhere" in logged) == heard
    assert len(recwarn) == heard
    assert capsys.readouterr().out == ("a line\n" if heard else "")
    logging.getLogger("elsewhere").critical("after it")
    assert caplog.records[-1].getMessage() == "after it"
