"""The subcommands of `fastgpt`, a module each.

To add one: write `fastgpt/commands/<name>.py` with a dataclass `Command` whose fields are the options (each with a
default, and a docstring that gives its unit) and whose `run()` returns the exit status; and add a line to
`fastgpt.cli.COMMANDS`. Heavy imports belong inside `run`: the help and most mistakes then come without torch.

A wrong setting is a `SettingError` with the option's name (`base/settings.py`), wherever it is found; `_mistakes.py`
says it as typed. What was kept when Ctrl-C comes is the text of the KeyboardInterrupt that `run` raises: `_signals.py`.
"""
