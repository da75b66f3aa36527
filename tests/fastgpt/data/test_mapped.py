"""Mapped datasets in other processes: their files are mapped again there, and nothing of them is copied."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest

from fastgpt.data import ShardError, TokenDataset
from fastgpt.data.mapped import check_whole
from fastgpt.data.sampler import BatchSampler

from .test_shards import big, ids_of

pytestmark = pytest.mark.needs("tiktoken")


def test_a_mapped_dataset_travels_as_a_path(tmp_path):
    dataset = big(tmp_path / "set", 50000, 20000)
    train, val = dataset.split(0.5)
    for sent in (dataset, train, val, train.split(0.3)[1], dataset.renamed("other")):
        data = pickle.dumps(sent)
        assert len(data) < 1500
        for got in (pickle.loads(data), copy.deepcopy(sent)):
            assert ids_of(got) == ids_of(sent)
            assert all(isinstance(shard, np.memmap) for shard in got.shards if len(shard))
            assert got.documents.tolist() == sent.documents.tolist()
            assert (got.name, got.vocab_size, got.sha256) == (sent.name, sent.vocab_size, sent.sha256)
            assert len(pickle.dumps(got)) < len(data) + 100


def test_a_sampler_travels_without_data_or_order(tmp_path):
    sampler = BatchSampler(big(tmp_path / "set", 50000, 20000), 4, 8, seed=3)
    sampler.next_batch()
    data = pickle.dumps(sampler)
    assert len(data) < 2500
    assert pickle.loads(data).next_batch()[0].tolist() == sampler.next_batch()[0].tolist()


def test_maps_of_ones_own_travel_as_a_path_too(tmp_path):
    np.arange(40000, dtype=np.uint16).tofile(tmp_path / "train.bin")
    for offset in (0, 34, 40960):
        mapped = np.memmap(tmp_path / "train.bin", np.uint16, "r", offset)
        sent = TokenDataset((mapped[7:], mapped[::2]), np.array([0]), 65536, "x", "mine")
        got = pickle.loads(pickle.dumps(dataset := TokenDataset((mapped[7:],), np.array([0]), 65536, "x", "mine")))
        assert len(pickle.dumps(dataset)) < 1000
        assert ids_of(got) == ids_of(dataset)
        assert ids_of(pickle.loads(pickle.dumps(sent))) == ids_of(sent)  # with every other id: a copy
    os.truncate(tmp_path / "train.bin", 60000)  # the end of the last map, but not its length, is beyond
    with pytest.raises(ShardError, match=r"train\.bin: cut to 60000 bytes while it was in use, 80000 were"):
        check_whole(mapped[7:])


def test_in_memory_is_copied():
    dataset = TokenDataset((np.arange(9),), np.array([0]), 10, "x", "memory")
    assert ids_of(pickle.loads(pickle.dumps(dataset))) == ids_of(dataset)
    assert ids_of(copy.deepcopy(dataset)) == ids_of(dataset)
