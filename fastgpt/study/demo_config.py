"""`DemoConfig`: what decides the demo; here, where nothing needs torch, so that `fastgpt demo --help` comes at once."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.settings import SettingError, check_choice, check_integer, check_number


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo. The model and the number of steps suit two CPU cores, or a GPU where there is one."""

    runs_dir: str = "runs"
    """Folder of all runs; the demo writes <runs_dir>/demo, or demo-2, demo-3, ... beside what is there."""
    seconds: float = 60.0
    """Time for training, seconds of this machine: the number of steps is chosen to fit, 300 to `max_steps`."""
    max_steps: int = 1000
    """Most parameter updates."""
    steps: int | None = None
    """Exactly so many updates, whatever the machine."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""
    prompt: str = "MIRANDA.\nO brave new world,"
    """What the sample continues; the attention maps show its beginning."""
    sample_tokens: int = 160
    """Tokens of the sample."""
    seed: int = 0
    """Of the weights, the order of the data and the sample."""

    def check(self) -> None:
        """Raise SettingError or SettingTypeError for a setting that cannot be."""
        check_number("DemoConfig", "seconds", self.seconds, above=0)
        check_integer("DemoConfig", "max_steps", self.max_steps, least=1)
        if self.steps is not None:
            check_integer("DemoConfig", "steps", self.steps, least=1)
        if not str(self.device).startswith("cuda:"):
            check_choice("DemoConfig", "device", self.device, ("auto", "cpu", "cuda", "cuda:1"))
        if not isinstance(self.prompt, str) or not self.prompt:
            raise SettingError("DemoConfig", "prompt", self.prompt, "must be a text of one character or more")
        check_integer("DemoConfig", "sample_tokens", self.sample_tokens, least=0)
        check_integer("DemoConfig", "seed", self.seed, least=0, most=2**63 - 1)
