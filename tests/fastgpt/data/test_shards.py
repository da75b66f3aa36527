"""Files of a token folder that are not what was written: noticed by whoever opens or reads them, and named."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from fastgpt.data import ShardError, TokenDataset, prepare, shard_checks, shards
from fastgpt.data.sampler import BatchSampler
from fastgpt.data.shard_writing import ShardWriter, write_manifest
from fastgpt.data.tokenizer import Tokenizer

FILES = ("manifest.json", "documents.npy", "tokens-00000.bin", "tokens-00003.bin")
TEXT = "It was the best of times, it was the worst of times. " * 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """These small files are looked at as large ones are."""
    monkeypatch.setattr(shard_checks, "_QUICK_FROM", 0)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"{name}: {TEXT}")
    sources = [folder / f"{name}.txt" for name in "abc"]
    prepare(sources, folder / "set", Tokenizer.named("shakespeare"), progress=False, shard_tokens=50)
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"{name}: {TEXT.swapcase()}")
    prepare(sources, folder / "other", Tokenizer.named("shakespeare"), progress=False, shard_tokens=50)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy that has its times."""
    return Path(shutil.copytree(written / "set", tmp_path / "set"))


def as_of_version_1(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"version": 1}
    for name in ("documents", "tokens_sha256", "manifest_sha256"):
        del manifest[name]
    for entry in manifest["shards"]:
        del entry["mtime_ns"]
    path.write_text(json.dumps(manifest))


def ids_of(dataset: TokenDataset) -> list[int]:
    return dataset.read(0, len(dataset)).tolist()


def hashed(monkeypatch) -> list[str]:
    """Names of the files that are read in whole from now on."""
    names, check = [], shard_checks._check_hash
    monkeypatch.setattr(shard_checks, "_check_hash", lambda path, *rest: (names.append(path.name), check(path, *rest)))
    return names


def flip(path: Path) -> None:
    """The last byte's lowest bit."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))


# ---- every file, damaged -------------------------------------------------------------------------------------------

DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0\0"),
    "binary": lambda path: path.write_bytes(b"\xff\xfe" * (path.stat().st_size // 2)),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("[1, 2"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(folder, name, how, version):
    if version == 1:
        as_of_version_1(folder)
    DAMAGES[how](folder / name)
    for verify in (False, True):
        with pytest.raises((ShardError, FileNotFoundError), match=name):
            TokenDataset.open(folder, verify=verify)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed_wherever_it_is(folder, name):
    whole = (folder / name).read_bytes()
    for at in range(0, 8 * len(whole), max(1, 8 * len(whole) // 40) | 1):  # all bits of a byte in turn
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        (folder / name).write_bytes(data)
        os.utime(folder / name, ns=(0, at))
        with pytest.raises((ShardError, FileNotFoundError), match=name):
            TokenDataset.open(folder)


def test_a_bit_that_flipped_on_the_disk_is_found_by_verify(folder, monkeypatch):
    """No time stamp changes there."""
    path = folder / "tokens-00001.bin"
    data, times = bytearray(path.read_bytes()), path.stat()
    data[40] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    TokenDataset.open(folder)
    for quick_from, verify in ((0, True), (1 << 20, False)):  # a small file is read whatever its time says
        monkeypatch.setattr(shard_checks, "_QUICK_FROM", quick_from)
        with pytest.raises(ShardError, match=r"tokens-00001\.bin: its sha256 .* altered after it was written"):
            TokenDataset.open(folder, verify=verify)


@pytest.mark.parametrize("keeps_times", [False, True])
@pytest.mark.parametrize("how", ["swapped", "replaced", "dropped"])
def test_shards_of_another_place_are_noticed(folder, written, how, keeps_times):
    copied = shutil.copy2 if keeps_times else shutil.copyfile
    first, second = folder / "tokens-00000.bin", folder / "tokens-00001.bin"
    if how == "swapped":
        for new, path in ((written / "set" / first.name, second), (written / "set" / second.name, first)):
            copied(new, path)
            os.utime(path, ns=(0, path.stat().st_mtime_ns + (0 if keeps_times else 1)))
    elif how == "replaced":
        copied(written / "other" / first.name, first)
    else:
        first.unlink()
    with pytest.raises((ShardError, FileNotFoundError), match=r"tokens-0000[01]\.bin"):
        TokenDataset.open(folder)


# ---- garbled manifests ---------------------------------------------------------------------------------------------

WRONG = ("3", "", -1, 0, 2**70, 1.5, None, [], {}, True)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "place",
    ["format", "version", "tokenizer", "tokenizer/vocab_size", "n_tokens", "n_documents", "shards", "shards/0",
     "shards/0/file", "shards/0/n_tokens", "shards/1/sha256", "tokenizer/sha256", "tokens_sha256", "documents",
     "documents/sha256"],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(folder, place, version):
    if version == 1:
        as_of_version_1(folder)
        if place.startswith(("tokens", "documents")):
            return  # not in it
    whole = (folder / "manifest.json").read_text()
    for wrong in (*WRONG, "gone"):
        if place == "tokenizer/sha256" and wrong == "3":
            continue  # whatever is a name of a tokenizer
        manifest = json.loads(whole)
        *path, last = (int(key) if key.isdigit() else key for key in place.split("/"))
        inner = manifest
        for key in path:
            inner = inner[key]
        if wrong == "gone":
            del inner[last]
        else:
            inner[last] = wrong
        if version == 2 and place != "version":  # so that the hash is not what is noticed
            manifest["manifest_sha256"] = shards.manifest_sha256(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ShardError, match=r"manifest\.json: "):
            TokenDataset.open(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '"x"', "{}", "[" * 9999, '{"format": NaN}', "\ufeff{}"])
def test_what_is_no_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match=r"manifest\.json: not a manifest"):
        TokenDataset.open(folder)


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (errno.EIO, "check the disk"), (errno.EACCES, "fix the permissions"),
        (errno.EMFILE, r"raise .* \(ulimit -n\), or prepare with a larger --shard-tokens"),
        (errno.ESTALE, "copy it from where it came from"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["manifest.json", "documents.npy", "tokens-00001.bin"])
def test_what_cannot_be_read_is_named_with_a_way_out(folder, monkeypatch, name, number, way):
    real = open

    def refused(path, *args, **options):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr("io.open", refused)  # pathlib's
    with pytest.raises(ShardError, match=rf"{name}: cannot be read \({os.strerror(number)}\); {way}$"):
        TokenDataset.open(folder)


def test_the_first_id_that_the_tokenizer_has_not_is_refused(folder):
    """The vocabulary's size: ids count from 0."""
    whole = TokenDataset.open(folder)
    largest = max(ids_of(whole))
    fits, lacks = (dataclasses.replace(whole, vocab_size=size) for size in (largest + 1, largest))
    assert max(ids_of(fits)) == largest
    with pytest.raises(ShardError, match=f"an id of {largest}, but its tokenizer has {largest}"):
        ids_of(lacks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_tokens": 99}, r"manifest\.json.*n_tokens is 99, but the shards have"),
        ({"n_documents": 2}, r"documents\.npy: not the 2 positions"),
        ({"n_documents": 10**6}, r"manifest\.json.*n_documents is '1000000'"),
        ({"tokenizer": {"name": "x", "vocab_size": 70000, "sha256": "x"}}, r"bin: 2-byte ids, the vocabulary needs 4"),
        ({"tokenizer": {"name": "x", "vocab_size": 3, "sha256": "x"}}, r"bin: an id of \d+, but its tokenizer has 3"),
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_refused(folder, change, message):
    """As one that was written so: with the right hash."""
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()) | change)
    with pytest.raises(ShardError, match=message):
        ids_of(TokenDataset.open(folder))


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [0, 0, 2, 3], [1, 2, 3]])
def test_shards_in_another_order_than_their_names_are_refused(folder, order):
    as_of_version_1(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"] = [manifest["shards"][number] for number in order]
    manifest["n_tokens"] = sum(entry["n_tokens"] for entry in manifest["shards"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r"manifest\.json: .*shard [01] is tokens-0000[01]\.bin"):
        TokenDataset.open(folder)


def test_a_manifest_altered_by_hand_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"n_bytes": ', '"n_bytes": 1'))
    with pytest.raises(ShardError, match=r"manifest\.json: its sha256 is not the one in it"):
        TokenDataset.open(folder)


# ---- what is read in whole -----------------------------------------------------------------------------------------


def test_a_set_in_its_place_is_opened_without_reading_it(written, monkeypatch):
    names = hashed(monkeypatch)
    TokenDataset.open(written / "set")
    assert names == []
    TokenDataset.open(written / "set", verify=True)
    assert len(names) == len(list((written / "set").iterdir())) - 1


@pytest.mark.parametrize("version", [1, 2])
def test_a_copy_is_read_once_and_remembered(folder, monkeypatch, cache, version):
    for path in folder.iterdir():
        path.touch()
    if version == 1:
        as_of_version_1(folder)
    names, n_files = hashed(monkeypatch), len(list(folder.iterdir())) - (3 - version)
    for _ in range(3):
        TokenDataset.open(folder)
        assert len(names) == n_files
    (folder / "tokens-00002.bin").touch()
    for _ in range(3):
        TokenDataset.open(folder)
        assert names[n_files:] == ["tokens-00002.bin"]
    shutil.rmtree(cache)
    cache.write_text("no folder")  # where nothing can be remembered
    TokenDataset.open(folder)
    assert len(names) == 2 * n_files + 1


def test_what_is_remembered_is_of_these_bytes(folder):
    path = folder / "tokens-00000.bin"
    path.touch()
    TokenDataset.open(folder)
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ShardError, match="altered"):
        TokenDataset.open(folder)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_long_reading_shows_a_bar_on_a_terminal(folder, monkeypatch, stream):
    monkeypatch.setattr(shard_checks, "_LONG", 1)
    monkeypatch.setattr("sys.stderr", stream())
    TokenDataset.open(folder, verify=True, progress=False)
    assert sys.stderr.getvalue() == ""
    TokenDataset.open(folder, verify=True)
    assert ("verifying" in sys.stderr.getvalue()) == (stream is Terminal)


def test_sets_of_version_1_can_be_read(folder, written):
    as_of_version_1(folder)
    old, new = TokenDataset.open(folder), TokenDataset.open(written / "set")
    assert ids_of(old) == ids_of(new)
    assert old.documents.tolist() == new.documents.tolist()


# ---- identity ------------------------------------------------------------------------------------------------------


def test_the_same_tokens_have_the_same_identity(written, folder, tmp_path):
    whole = TokenDataset.open(written / "set")
    assert len(whole.sha256) == 64
    assert TokenDataset.open(folder).sha256 == whole.sha256
    assert TokenDataset.open(written / "other").sha256 != whole.sha256
    ids = np.array(ids_of(whole))
    in_memory = TokenDataset((ids[:9], ids[9:]), whole.documents, whole.vocab_size, whole.tokenizer_sha256, "memory")
    assert in_memory.sha256 == whole.sha256
    assert in_memory.renamed("x").sha256 == pickle.loads(pickle.dumps(whole.renamed("x"))).sha256 == whole.sha256
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name}: {TEXT}")
    again = prepare(sorted(tmp_path.glob("*.txt")), tmp_path / "b", Tokenizer.named("shakespeare"), progress=False)
    assert again.sha256 == whole.sha256  # in one shard, from another folder
    as_of_version_1(tmp_path / "b")
    assert TokenDataset.open(tmp_path / "b").sha256 == whole.sha256


def test_slices_have_an_identity_of_their_own(written):
    dataset, other = TokenDataset.open(written / "set"), TokenDataset.open(written / "other")
    ids = np.array(ids_of(dataset))
    memory = TokenDataset((ids,), dataset.documents, dataset.vocab_size, dataset.tokenizer_sha256, "memory")

    def identities(dataset: TokenDataset) -> list[str]:
        parts = [part for n in (9, 8) for part in dataset.split(n / len(ids))]
        return [part.sha256 for part in [dataset, *parts, *parts[0].split(0.1)]]

    assert len(set(identities(dataset))) == 7
    assert identities(memory) == identities(dataset) == identities(pickle.loads(pickle.dumps(dataset)))
    assert not set(identities(other)) & set(identities(dataset))
    for part in (*memory.split(0.1), *dataset.split(0.1)):
        assert pickle.loads(pickle.dumps(part)).sha256 == part.renamed("x").sha256 == part.sha256


# ---- other processes -----------------------------------------------------------------------------------------------


def big(folder: Path, n: int, shard_tokens: int) -> TokenDataset:
    """A set of n ids."""
    writer = shards_writer(folder, shard_tokens)
    writer.write(np.arange(n) % 4096)
    small = Tokenizer.named("shakespeare")
    about = {"name": small.name, "vocab_size": small.vocab_size, "sha256": small.sha256}
    writer.close(np.arange(0, n, 1000), tokenizer=about, n_bytes=n, sources=[])
    return TokenDataset.open(folder)


def shards_writer(folder: Path, shard_tokens: int) -> ShardWriter:
    folder.mkdir()
    return ShardWriter(folder, np.dtype("<u2"), shard_tokens)


@pytest.mark.parametrize("how", ["cut", "gone", "a folder", "another"])
def test_another_file_on_arrival_is_an_error(folder, written, how):
    dataset = TokenDataset.open(folder)
    path = folder / "tokens-00001.bin"
    if how == "another":  # as `prepare` puts it there: the sender has the old one
        shutil.copyfile(written / "other" / path.name, folder / "new")
        (folder / "new").rename(path)
    data = pickle.dumps(dataset)
    if how == "another":
        pass
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()
    with pytest.raises(ShardError, match=r"tokens-00001\.bin: "):
        pickle.loads(data)


# ---- cut while in use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("tokens-00001.bin", lambda dataset, val: ids_of(dataset)),
        ("tokens-00000.bin", lambda dataset, val: dataset.unigram_entropy()),
        ("tokens-00001.bin", lambda dataset, val: ids_of(val)),
        ("tokens-00002.bin", lambda dataset, val: BatchSampler(val, 1, 19000).next_batch()),
        ("documents.npy", lambda dataset, val: dataset.split(0.2)),
    ],
)
def test_a_file_that_is_cut_while_in_use_is_an_error(tmp_path, name, use):
    """Reading a map beyond its file's end would end the process by SIGBUS: so in one of its own."""
    dataset = big(tmp_path / "set", 50000, 20000)
    val = dataset.split(0.4)[1]
    child = os.fork()
    if child == 0:
        os.truncate(tmp_path / "set" / name, 40)
        try:
            use(dataset, val)
        except ShardError as error:
            (tmp_path / "said").write_text(str(error))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert f"{name}: cut to 40 bytes while it was in use" in (tmp_path / "said").read_text()


def test_a_file_that_is_replaced_while_in_use_stays_what_it_was(folder, written):
    dataset = TokenDataset.open(folder)
    before = ids_of(dataset)
    shutil.copyfile(written / "other" / "tokens-00000.bin", folder / "new")
    (folder / "new").rename(folder / "tokens-00000.bin")
    (folder / "tokens-00001.bin").unlink()
    assert ids_of(dataset) == before


# ---- beyond 2^31 ---------------------------------------------------------------------------------------------------


def test_sets_of_more_than_2_to_the_31_tokens(tmp_path):
    n, far = (1 << 31) + 1000, (1 << 31) + 900
    writer = shards_writer(tmp_path / "set", 1 << 40)
    writer.write(np.arange(10))
    small = Tokenizer.named("shakespeare")
    about = {"name": small.name, "vocab_size": small.vocab_size, "sha256": small.sha256}
    writer.close(np.array([0, far]), tokenizer=about, n_bytes=n, sources=[])
    with open(tmp_path / "set" / "tokens-00000.bin", "r+b") as file:
        file.truncate(32 + 2 * n)  # a hole, which takes no space
        file.seek(32 + 2 * far)
        file.write(np.arange(1, 101, dtype="<u2").tobytes())
        file.seek(0)
        file.write(shards.HEADER.pack(shards.MAGIC, 1, 2, n))
    np.save(tmp_path / "set" / "documents.npy", np.array([0, far]))
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text()) | {"n_tokens": n}
    manifest["shards"][0]["n_tokens"] = n
    write_manifest(tmp_path / "set", manifest)
    dataset = TokenDataset.open(tmp_path / "set")
    assert len(dataset) == n
    assert dataset.read(far - 1, far + 4).tolist() == [0, 1, 2, 3, 4]
    val = dataset.split(100 / n)[1]
    assert ids_of(val) == list(range(1, 101))
    assert val.documents.tolist() == [0]
    assert ids_of(pickle.loads(pickle.dumps(val))) == list(range(1, 101))
    sampler = BatchSampler(dataset, 1, 1 << 24, seed=0)
    last = int(np.flatnonzero(np.random.default_rng([0, 0]).permutation(sampler.n_windows) == sampler.n_windows - 1)[0])
    sampler.position = last
    idx, targets = sampler.next_batch()
    assert idx[0, 896:902].tolist() == [0, 0, 0, 0, 1, 2]
    assert targets[0, 999:1001].tolist() == [-100, -100]
