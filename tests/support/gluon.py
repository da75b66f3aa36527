"""pytest -p tests.support.gluon: attention by Hopper's kernels alone. What they cannot take is skipped, and says why.

With FASTGPT_ATTENTION=gluon, which this plugin sets, such a call is an error: the tests of attention try float32,
dropout and strides that the copy engine does not take, too.
"""

import os
from collections.abc import Generator

import pytest

os.environ["FASTGPT_ATTENTION"] = "gluon"
REFUSED = "FASTGPT_ATTENTION=gluon, but "


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    try:
        return (yield)
    except ValueError as error:
        if REFUSED in str(error):
            pytest.skip(str(error).split(REFUSED)[1])
        raise
