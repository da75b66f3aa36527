"""`fastgpt verify`: compare every Triton kernel with the reference in float64."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Command:
    """Run every kernel, forward and backward, and compare it with its reference in float64. Exit status 1 if one is
    over its error budget. On a CPU the kernels run in Triton's interpreter, with tiny shapes: some twenty seconds."""

    only: tuple[str, ...] = ()
    """Kernels to check, e.g. flash_attention layer_norm; all if not given."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" (Triton's interpreter) or "cuda"."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        import json

        from ..tools.verify import verify
        from ..train.devices import resolve_device
        from ._status import status

        with status() as say:
            report = verify(resolve_device(self.device), self.only, say)
        print(json.dumps(report.record(), allow_nan=False) if self.json else report)
        return 0 if report.ok else 1
