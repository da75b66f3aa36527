"""`fastgpt export`: a checkpoint's model in a format that others read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..base.settings import SettingError, SettingTypeError

if TYPE_CHECKING:
    from ..data.tokenizer import Tokenizer
    from ..model.config import GPTConfig
    from ..model.gpt import GPT
    from ..model.one_head import OneHeadLM
    from ..model.one_head_config import OneHeadConfig

FORMATS = ("fastgpt", "hf", "nanogpt")  # of fastgpt.model.formats.folder, which takes torch to read


@dataclass
class Command:
    """Write the model of a checkpoint, of one process or of many, to a new folder: whole weights, and its tokenizer."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A run (runs/<name>: its newest checkpoint), one of its checkpoints, or a model's folder."""
    out: Positional[Annotated[str, arg(metavar="OUT")]]
    """The folder to write; it must not be there, or be empty."""
    format: str = "fastgpt"
    """"fastgpt" (config.json, model.safetensors), "hf" (those as transformers' GPT2LMHeadModel reads them) or "nanogpt"
    (ckpt.pt)."""

    def run(self) -> int:
        from .. import interop
        from ..data.tokenizer import Tokenizer
        from . import _inputs

        if self.format not in FORMATS:
            need = f"must be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            raise SettingError("export", "format", self.format, need)
        out = self._checked()
        folder = _inputs.model_folder(self.model)
        with _inputs.pointing_back(folder):
            self._check_format(interop.open_config(folder))
            model = interop.open_model(folder, device="cpu")
        beside = folder if folder.is_dir() else folder.parent
        tokenizer = None
        if os.path.lexists(beside / "fastgpt_tokenizer.json"):
            tokenizer = Tokenizer.from_pretrained(beside)
        try:
            self._write(out, model, tokenizer)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was written") from None
        names = ", ".join(sorted(path.name for path in out.iterdir()))
        print(f"{out}: {model.num_parameters():,} parameters of {folder} as {self.format} ({names})")
        return 0

    def _checked(self) -> Path:
        """The folder to write, if it can be, and nothing is in it."""
        from ..base.files import check_folder
        from ._outputs import why_not

        try:
            out = check_folder("export", "out", self.out)
        except (SettingError, SettingTypeError) as error:
            raise SettingError("export", "out", self.out, error.need) from None
        if out.is_dir() and any(out.iterdir()):
            raise SettingError("export", "out", self.out, "holds files, which stay as they are; name a new folder")
        if why := why_not(out):
            raise SettingError(
                "export", "out", self.out, f"cannot be written: {why.replace('another file', 'another')}"
            )
        return out

    def _check_format(self, config: GPTConfig | OneHeadConfig) -> None:
        """Raise SettingError where the format has no such models; asked of one without values."""
        from ..model.config import GPTConfig
        from ..model.formats import hf_gpt2, nanogpt
        from ..model.formats.folder import skeleton
        from ..model.gpt import GPT

        if self.format == "fastgpt":
            return
        try:
            if not isinstance(config, GPTConfig):
                raise ValueError("a OneHeadLM has no other format")
            if self.format == "hf":
                hf_gpt2.config_to_hf(config)
            else:
                nanogpt.to_checkpoint(config, skeleton(lambda: GPT(config)).state_dict())
        except ValueError as error:
            what = str(error).partition("; save with")[0]
            need = f"cannot hold this model: {what}; take fastgpt"
            raise SettingError("export", "format", self.format, need) from None

    def _write(self, out: Path, model: GPT | OneHeadLM, tokenizer: Tokenizer | None) -> None:
        """All of it in a folder beside, which is renamed when it is whole.

        Raises:
            OSError: the disk is full or cannot be written; there is nothing of it.
        """
        from ..base import files

        try:
            with files.working_folder(out.parent) as work:
                model.save_pretrained(work, **({} if self.format == "fastgpt" else {"format": self.format}))
                if tokenizer is not None:
                    tokenizer.save(work)
                files.flush_all(work)
                work.rename(out)  # which may be an empty folder
                files.flush(out.parent)
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            space = files.free_space(cause, out.parent)
            raise type(error)(
                f"could not write {out} ({files.reason(cause)}{space}); {files.way_out(cause)}"
            ) from error
