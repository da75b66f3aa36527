"""`fastgpt train`: train a GPT."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ..config import GPTConfig
from ..trainer import TrainConfig


@dataclass
class ModelOptions:
    """Shape of the model. What is not given is the preset's."""

    preset: str = "depth-4x256x4"
    """GPT-2 sizes: gpt2 (124M), gpt2-medium, gpt2-large, gpt2-xl; depth study: depth-{2,4,8,12}x{256,512}x{4,8}
    (layers x width x heads)."""
    n_layers: int | None = None
    """Blocks."""
    n_heads: int | None = None
    """Query heads."""
    n_kv_heads: int | None = None
    """Key/value heads (fewer than n_heads: grouped-query attention)."""
    d_model: int | None = None
    """Width of the residual stream."""
    d_ff: int | None = None
    """Hidden width of the FFN."""
    max_len: int | None = None
    """Longest context, tokens."""
    vocab_size: int | None = None
    """Token ids; the tokenizer's number if not given (50304 pads GPT-2's to a multiple of 64)."""
    dropout: float | None = None
    """Probability, on embeddings, attention weights and sub-layer outputs."""
    bias: bool | None = None
    """Biases in projections, FFN and LayerNorms."""
    tie_weights: bool | None = None
    """The head is the token embedding."""
    gelu: str | None = None
    """"none" (exact, erf) or "tanh"."""
    attn_impl: str | None = None
    """"auto", "triton", "sdpa" or "reference"."""
    norm_impl: str | None = None
    """"auto", "triton", "torch" or "reference"."""
    ffn_impl: str | None = None
    """"auto", "triton", "torch" or "reference"."""
    loss_impl: str | None = None
    """"auto", "triton", "torch" or "reference"."""

    def config(self, vocab_size: int) -> GPTConfig:
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k != "preset"}
        return GPTConfig.preset(self.preset, **{"vocab_size": vocab_size} | given)


@dataclass
class Command:
    """Train a GPT on texts or token shards. Everything is written to <runs-dir>/<name>; Ctrl-C saves first."""

    data: tuple[str, ...] = ("shakespeare",)
    """Training data: "shakespeare" (embedded), a folder of `fastgpt prepare`, or text files and folders."""
    val_data: tuple[str, ...] = ()
    """Validation data, named likewise; if not given, the last part of the training data (of "shakespeare": its own)."""
    val_fraction: float = 0.01
    """Fraction of the training tokens that is held out when there is no validation data."""
    tokenizer: str = "gpt2"
    """"gpt2" (50,257 ids), "shakespeare" (4,096 ids), or a .tiktoken file."""
    init_from: str | None = None
    """Start from this model's weights (a run or a model's folder) in place of random ones."""
    resume: bool = False
    """Go on from the run's newest checkpoint."""
    overwrite: bool = False
    """Start again where a run of this name exists."""
    progress: bool = True
    """Show progress bars."""
    config: str | None = None
    """TOML, YAML or JSON file with these settings, in tables [model] and [train]; options override it. Every run
    leaves such a file: <runs-dir>/<name>/settings.json."""
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainConfig = field(default_factory=TrainConfig)

    def run(self) -> int:
        import torch

        from .. import metrics
        from ..model import GPT
        from ..tokenizer import Tokenizer
        from ..trainer import Trainer
        from . import _inputs

        tokenizer = Tokenizer.load(self.tokenizer)
        train_data = _inputs.open_data(self.data, "train", tokenizer, progress=self.progress)
        if self.val_data:
            val_data = _inputs.open_data(self.val_data, "val", tokenizer, option="--val-data", progress=self.progress)
        elif self.data == ("shakespeare",):
            val_data = _inputs.open_data(self.data, "val", tokenizer)
        else:
            train_data, val_data = train_data.split(self.val_fraction)
        torch.manual_seed(self.train.seed)
        if self.init_from is not None:
            model = GPT.from_pretrained(_inputs.model_folder(self.init_from))
        else:
            model = GPT(self.model.config(tokenizer.vocab_size))
        trainer = Trainer(
            model, train_data, self.train, val_data=val_data, tokenizer=tokenizer, settings=self._settings(),
            show_progress=self.progress,
        )  # fmt: skip
        print(
            f"{model.num_parameters():,} parameters, {len(train_data):,} training and {len(val_data):,} validation "
            f"tokens, {str(trainer.dtype).removeprefix('torch.')} on {trainer.device}; writing {self.train.folder}"
        )
        if trainer.device.type == "cuda":
            peak = metrics.peak_flops(torch.cuda.get_device_name(trainer.device), trainer.dtype)
            print(f"{metrics.MFU_FORMULA} = {'unknown, so n/a' if peak is None else f'{peak:.4g} FLOP/s'}")
        result = trainer.fit(resume=self.resume, overwrite=self.overwrite)
        if result.validation is not None:
            print(f"validation {_summary(dataclasses.asdict(result.validation))}")
        print(f"step {result.step}: saved {result.checkpoint}")
        if result.stopped_by is not None:
            settings = self.train.folder / "settings.json"
            print(f"stopped by {result.stopped_by}; go on with: fastgpt train --config {settings} --resume")
            return {"SIGINT": 130, "SIGTERM": 143}[result.stopped_by]
        return 0

    def _settings(self) -> dict:
        """Everything but what belongs to this call alone, in the form that --config reads."""
        settings = dataclasses.asdict(self)
        for name in ("resume", "overwrite", "config", "progress"):
            del settings[name]
        return _without_none(settings)


def _without_none(settings: dict) -> dict:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in settings.items() if v is not None and v != ()}


def _summary(values: dict) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {v:,.4g}" for k, v in values.items() if v is not None)
