"""`fastgpt study smoothing`: how alike a model's tokens become with depth."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ..base.settings import SettingError, check_integer
from ..study.smoothing_config import ComparisonConfig
from ._options import UsageError
from ._signals import status_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..data.tokenizer import Tokenizer
    from ..model.gpt import GPT


@dataclass
class Command:
    """Measure over-smoothing: how alike the tokens of a text are behind each layer of a model.

    Mean cosine of two tokens, raw and centred, effective rank, share of the first singular direction, and for each
    attention head its Dirichlet energy and entropy. Prints a row for each layer, means over heads and sequences.

    With --train, and without FOLDER, four small models are trained on the embedded Shakespeare, without and with
    dropout, without and with weight decay, and compared: <runs-dir>/<name>/study.html. The same command goes on with a
    comparison that was stopped; finished runs are not made again.
    """

    model: Positional[Annotated[str | None, arg(metavar="FOLDER")]] = None
    """A run (runs/<name>: its newest checkpoint), or a model's folder, GPT-2's of transformers too."""
    text: Positional[Annotated[str | None, arg(metavar="TEXT")]] = None
    """The text to look at; "-": read it from stdin; the embedded Shakespeare (its validation part) if not given."""
    seq_len: int | None = None
    """Tokens per sequence; the model's max_len, at most 256, if not given. A shorter text is one sequence."""
    sequences: int = 8
    """At most so many sequences, spread evenly over the text; a longer text is not read whole."""
    out: str | None = None
    """A file of JSON to write: every number, the text, the machine."""
    page: str | None = None
    """A page (.html) to write: charts by layer, each head, the formulas explained."""
    tokenizer: str | None = None
    """The model's own if not given; else "gpt2", "shakespeare" or a .tiktoken file."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu" or "cuda"."""
    threads: int | None = None
    """CPU threads that torch trains with; its own choice if not given."""
    train: bool = False
    """Compare dropout and weight decay on models that are trained for it; the options below are of this."""
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)

    def run(self) -> int:
        if self.train:
            return self._compare()
        if self.model is None:
            raise UsageError(
                "FOLDER is missing; write fastgpt study smoothing FOLDER [TEXT] [options], or --train in its place"
            )
        for name in self.comparison.changed():
            need = "is of the comparison that --train makes; add --train, or leave it out"
            raise SettingError("smoothing", name, getattr(self.comparison, name), need)
        return self._look(self.model)

    def _look(self, folder: str) -> int:
        from ..model.gpt import GPT
        from ..study import smoothing_record
        from ..train.devices import resolve_device
        from . import _inputs
        from ._outputs import check_both

        device = resolve_device(self.device)
        check_integer("smoothing", "sequences", self.sequences, least=1)
        check_both("study smoothing", self.out, self.page, smoothing_record.is_ours)
        model, tokenizer = _inputs.open_model(folder, device, self.tokenizer)
        if not isinstance(model, GPT):
            need = f"is a {type(model).__name__}, one head and no blocks: it has no layers to compare; give a GPT"
            raise SettingError("smoothing", "model", folder, need)
        name, ids = self._text(tokenizer)
        idx = self._windows(ids, model.config.max_len)
        record = smoothing_record.record_of([self._measured(folder, model, idx, device)], name, len(ids), idx)
        print(table(record))
        self._write(record)
        return 0

    def _compare(self) -> int:
        import torch

        from ..data import shakespeare_tokens
        from ..data.tokenizer import Tokenizer
        from ..study.interrupted import Interrupted
        from ..study.smoothing_comparison import Comparison
        from ..train.devices import resolve_device
        from . import _inputs

        for name in ("model", "text", "seq_len", "out", "page"):
            if getattr(self, name) is not None:
                way = {"seq_len": "--max-len says it", "out": "it writes study.json", "page": "it writes study.html"}
                need = f"is of one model, and --train trains its own ({way.get(name, 'on its own text')}); leave it out"
                raise SettingError("smoothing", name, getattr(self, name), need)
        resolve_device(self.device)
        check_integer("smoothing", "sequences", self.sequences, least=1)
        if self.threads is not None:
            torch.set_num_threads(check_integer("smoothing", "threads", self.threads, least=1, most=1024))
        self.comparison.earlier()  # what is wrong with its folder is told before texts are tokenized
        tokenizer = Tokenizer.load(self.tokenizer or "shakespeare")
        train_data, val_data = (shakespeare_tokens(split, tokenizer) for split in ("train", "val"))
        how: dict[str, Any] = {"sequences": self.sequences, "device": self.device}
        comparison = Comparison(self.comparison, train_data, val_data, tokenizer, **how)
        try:
            with _inputs.progress_bar("training", comparison.updates_left()) as step:
                found = comparison.run(step, say)
        except Interrupted as stop:
            return status_of("fastgpt study smoothing", stop)
        if found.record["rows"]:
            print(comparison_table(found.record))
            print(found.page)
        if found.failed:
            print(f"{len(found.failed)} runs failed: {', '.join(found.failed)}", file=sys.stderr)
        return 1 if found.failed else 0

    def _text(self, tokenizer: Tokenizer) -> tuple[str, list[int]]:
        """What the text is called, and its token ids."""
        from ..data import shakespeare_tokens
        from . import _inputs

        if self.text is None:
            data = shakespeare_tokens("val", tokenizer)
            return data.name, data.read(0, len(data)).tolist()
        return ("stdin" if self.text == "-" else "the text given"), tokenizer.encode(_inputs.read_prompt(self.text))

    def _windows(self, ids: list[int], max_len: int) -> Tensor:
        from ..study.smoothing_record import windows

        seq_len = min(max_len, 256) if self.seq_len is None else self.seq_len
        check_integer("smoothing", "seq_len", seq_len, least=2, most=max_len, hint=", the model's max_len")
        try:
            return windows(ids, seq_len, self.sequences)
        except SettingError as error:
            if error.name != "text":
                raise
            shown = self.text if self.text not in (None, "-") else "-"
            raise SettingError(error.owner, "text", shown, error.need) from None

    def _measured(self, folder: str, model: GPT, idx: Tensor, device: torch.device) -> dict[str, Any]:
        from ..study.smoothing_record import row_of
        from . import _inputs

        try:
            with _inputs.progress_bar("measuring", len(idx)) as step:
                return row_of(folder, model, idx.to(device), step)
        except SettingError as error:
            if error.name not in ("hidden", "weights"):
                raise
            need = "has numbers in its layers that are not finite: its training diverged; take an earlier checkpoint"
            raise SettingError("smoothing", "model", folder, need) from None

    def _write(self, record: dict[str, Any]) -> None:
        from ..study import smoothing_page
        from ..study.study_folder import write_record

        written: list[str] = []
        try:
            if self.out is not None:
                write_record(self.out, record)
                written.append(self.out)
                print(self.out)
            if self.page is not None:
                smoothing_page.page_of(record).save(self.page)
                print(self.page)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"wrote {written[0]} only" if written else "nothing was written") from None


def table(record: dict[str, Any]) -> str:
    """What the terminal shows of one model."""
    from ..study.measures import largest_entropy
    from ..study.smoothing_page import HEADER, MEASURES, figure, mean_of, shape, text_of
    from ._table import note, side_by_side

    row = record["rows"][0]
    rows = {}
    for layer in row["layers"]:
        name = "embeddings" if layer["layer"] == 0 else f"block {layer['layer']}"
        values = [(measure, mean_of(layer, measure)) for measure in MEASURES]
        rows[name] = ["-" if value is None else figure(measure, value) for measure, value in values]
    largest = largest_entropy(record["text"]["seq_len"])
    return "\n".join([
        f"{row['name']}: {shape(row)}",
        text_of(record),
        "",
        side_by_side(HEADER[1:], rows),
        "",
        note(
            "cosine: mean over pairs of tokens (1: all alike); centred: without their mean; rank: effective rank; top "
            "share: of the first singular direction; energy, entropy: of the attention that reads this layer, means "
            f"over heads; a head that looks at all tokens alike has an entropy of {largest:.4f} nats."
        ),
    ])  # fmt: skip


def comparison_table(record: dict[str, Any]) -> str:
    """What the terminal shows of a comparison: means over seeds at the end of training, and what changed."""
    import statistics

    from ..study.smoothing_comparison_page import effect_rows, shown
    from ..study.smoothing_effects import KNOBS, figures
    from ..study.smoothing_page import grouped
    from ._table import note, side_by_side

    groups = grouped(record["rows"])
    whats = list(figures(record["rows"][0]))
    rows = {
        what: [f"{statistics.fmean(figures(row)[what] for row in same):.4f}" for same in groups.values()]
        for what in whats
    }
    by_knob = {
        knob: {effect["what"]: shown(effect) for effect in record["effects"] if effect["knob"] == knob}
        for knob in KNOBS
    }
    changes = {row[0]: [*(by_knob[knob].get(str(row[0]), "-") for knob in KNOBS)] for row in effect_rows(record)}
    return "\n".join([
        side_by_side(list(groups), rows),
        "",
        "what they change",
        side_by_side(list(KNOBS.values()), {str(what): cells for what, cells in changes.items()}),
        "",
        note(
            "Measures: behind the last block. A change is the mean over pairs of runs that differ in nothing else; in "
            "brackets: how many of them changed the same way."
        ),
    ])  # fmt: skip


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
