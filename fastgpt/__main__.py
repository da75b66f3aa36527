"""`python -m fastgpt`: the same as the command `fastgpt`."""

from .cli import main

raise SystemExit(main())
