"""Checkpoints of many ranks: each writes its part, while training goes on; rank 0 makes them whole.

    runs/<name>/checkpoints/step-00001000/
        config.json, fastgpt_tokenizer.json, training.json      as of one process (`checkpoint.py`); "ranks", "strategy"
        sharded/shard-00001-model-00001-of-00001.safetensors    a file for each rank: weights, moments, random states
        checksums.json                                          sha256 of every file above

torch.distributed.checkpoint plans who writes what (what several ranks have is written once), copies it to the CPU, and
writes it in a thread; `Writer` adds what makes the folder atomic. All ranks write into one folder ".writing-...": each
flushes and hashes its own file, and when all have, rank 0 adds the rest and renames. This module imports torch's, which
takes a second, so it is imported by who saves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.futures import Future

from ..base import checksums, files
from ..model.config import GPTConfig
from ..model.formats import sharded
from ..model.formats.folder import compare_names, in_words, skeleton
from ..model.formats.one_head import MODEL_TYPE
from ..model.gpt import GPT
from ..model.one_head_config import OneHeadConfig
from ..parallel.world import World, is_lost
from . import step_folders
from .checkpoint import could_not_save
from .step_folders import WRITING, CheckpointError
from .training_state import optimizer_tensors, rank_rng_tensors, weights

_TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])
_FOLDER = "folder"  # in a plan: the name of the folder that is written into


class Writer(HuggingFaceStorageWriter):
    """torch's writer of safetensors, which leaves a whole checkpoint in `target` or none.

    describe: writes what is no tensor into a folder; called on rank 0.
    """

    def __init__(self, target: Path, describe: Callable[[Path], None]) -> None:
        super().__init__(str(target.parent), save_distributed=True)
        self.target, self.describe = target, describe
        self.held = contextlib.ExitStack()  # rank 0's folder and its lock

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Without the folder that torch's makes on every rank: rank 0 makes it, in `prepare_global_plan`."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Makes the folder to write into, and has each rank told of it."""
        work = self.held.enter_context(files.working_folder(self.target.parent, WRITING))
        (work / sharded.FOLDER).mkdir()
        return [
            dataclasses.replace(plan, storage_data=plan.storage_data | {_FOLDER: work.name})
            for plan in super().prepare_global_plan(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[Any]:
        """Writes and flushes this rank's file. Returns its name and its sha256, in place of what torch's says."""
        folder = self.target.parent / plan.storage_data[_FOLDER] / sharded.FOLDER
        self.path = folder
        written = super().write_data(plan, planner).wait()
        hashes = {result.storage_data.relative_path for result in written}
        future: Future[Any] = Future()
        future.set_result([(f"{sharded.FOLDER}/{name}", files.sha256(folder / name)) for name in sorted(hashes)])
        return future

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Rank 0, when all files are on the disk: the checkpoint is whole from here on, or is not there."""
        work = Path(self.path).parent
        self.describe(work)
        checksums.write(work, dict(pair for written in results for pair in written))
        for path in work.iterdir():
            files.flush(path)
        files.flush(work)
        step_folders.replace(work, self.target)


class Group:
    """What the saves of one job share: a gloo group of their own, and the memory that tensors are copied into.

    timeout: seconds that a rank waits for another.
    """

    def __init__(self, world: World, timeout: float | None) -> None:
        import datetime

        self.world = world
        limit = None if timeout is None else datetime.timedelta(seconds=timeout)
        self.group = dist.new_group(backend="gloo", timeout=limit)
        self._stager: DefaultStager | None = None

    def stager(self) -> DefaultStager:
        """What copies tensors to the CPU; it keeps that memory, where torch's can be used more than once: before 2.13
        it closes itself, and raises a KeyError when it is called again."""
        if self._stager is None or _TORCH < (2, 13):
            on_gpu = self.world.device.type == "cuda"
            self._stager = DefaultStager(StagingOptions(on_gpu, False, False, on_gpu))
        return self._stager

    def save(
        self, target: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], tokenizer: Any
    ) -> Callable[[], None]:
        """Begin to write a checkpoint of what is now. The function that is returned waits until it is whole.

        All ranks call it; so do they the function, which raises the same on all.

        Raises:
            CheckpointError: the parameters are not those of a model of this config; or, by the function, it cannot be
                written. By the function too: what torch.distributed raises where a rank is gone.
        """
        from torch.distributed.checkpoint import async_save

        tensors = weights(model)
        _check_names(model, tensors)
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        tensors |= optimizer_tensors(model, optimizer)
        tensors |= rank_rng_tensors(self.world.rank, self.world.device)
        config = getattr(model, "config", None)
        text = json.dumps(state, indent=2) + "\n"

        def describe(work: Path) -> None:
            if (fields := _fields(config)) is not None:
                (work / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save(work)
            (work / "training.json").write_text(text, encoding="utf-8")

        writer = Writer(target, describe)
        saving = async_save(tensors, storage_writer=writer, process_group=self.group, async_stager=self.stager())
        future: Any = getattr(saving, "upload_completion", saving)

        def wait() -> None:
            try:
                future.result()
            except (CheckpointException, Exception) as error:
                told = error.failures.values() if isinstance(error, CheckpointException) else [(error, None)]
                cause, _ = next(iter(told))
                if isinstance(cause, Exception) and is_lost(cause):
                    raise cause from None
                raise could_not_save(target, cause if isinstance(cause, Exception) else RuntimeError(cause)) from cause
            finally:
                writer.held.close()

        return wait

    def close(self) -> None:
        """Free the memory that tensors were copied into."""
        if self._stager is not None:
            self._stager.close()


def _fields(config: Any) -> dict[str, Any] | None:
    """config.json of one of our models; None of others, whose config we do not know how to write."""
    if isinstance(config, GPTConfig):
        return {"model_type": "fastgpt", **config.to_dict()}
    if isinstance(config, OneHeadConfig):
        return {"model_type": MODEL_TYPE, **config.to_dict()}
    return None


def _check_names(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError where a GPT has other parameters than one of its config: nothing would read them back."""
    if not isinstance(model, GPT):
        return
    expected = skeleton(lambda: GPT(model.config)).state_dict()
    if model.config.tie_weights:
        expected = {name: tensor for name, tensor in expected.items() if name != "head.weight"}
    try:
        compare_names(expected, tensors, source="Trainer", config=in_words(model.config))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
