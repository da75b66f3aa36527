"""How a model may lie on several devices, by name (`fastgpt.parallel.strategy`)."""

STRATEGIES = ("auto", "ddp", "fsdp", "hsdp")
