"""The subcommands of `fastgpt`, a module each.

To add one: write `fastgpt/commands/<name>.py` with a dataclass `Command` whose fields are the options (each with a
default, and a docstring that gives its unit) and whose `run()` returns the exit status; and add a line to
`fastgpt.cli.COMMANDS`. Heavy imports belong inside `run`.
"""
