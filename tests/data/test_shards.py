"""Tar shards: readable by anyone, in an order that seed and epoch fix, resumable, partitioned exactly."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.data.clip import Clip
from auralign.data.shards import ShardReader, shard_key, write_shards
from auralign.errors import AuralignError, DataError


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("sounds")
    found = []
    for number in range(23):
        path = folder / f"{number}.{'flac' if number % 2 else 'wav'}"
        samples = np.random.default_rng(number).integers(-9000, 9000, (400 + number, 1 + number % 3 % 2))
        soundfile.write(path, samples.astype(np.int16), 16000)
        name = f"-a_{number}.x" if number == 3 else f"set/clip {number}"
        found.append(Clip(name, str(path), captions=(f"Nº {number}", "b"), labels=("dog",), split="train"))
    return found


@pytest.fixture(scope="module")
def shards(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    written = write_shards(clips, tmp_path_factory.mktemp("shards"), max_bytes=20_000)
    assert len(written) > 3
    return written


def names(reader: ShardReader) -> list[str]:
    return [item.clip.id for item in reader]


def test_clips_come_back_sample_for_sample(clips: list[Clip], shards: list[Path]) -> None:
    back = list(ShardReader(shards, seed=None))
    assert [item.clip.id for item in back] == [clip.id for clip in clips]
    for clip, item in zip(clips, back, strict=True):
        samples, rate = soundfile.read(clip.audio, dtype="float32", always_2d=True)
        np.testing.assert_array_equal(item.samples, samples.T)
        assert (item.rate_hz, item.clip.sample_rate) == (rate, rate)
        assert item.clip.captions == clip.captions
        assert item.clip.duration_s == pytest.approx(len(samples) / rate)
        assert item.clip.channels == samples.shape[1]


def test_shards_are_pairs_of_flac_and_json_under_keys_without_dots(shards: list[Path]) -> None:
    with tarfile.open(shards[0]) as tar:
        members = tar.getnames()
        about = json.loads(tar.extractfile(members[1]).read())
    for sound, text in zip(members[::2], members[1::2], strict=True):
        assert sound.removesuffix(".flac") == text.removesuffix(".json")
        assert "." not in sound.removesuffix(".flac")
        assert not sound.startswith(("/", "-"))
    assert about["captions"] == ["Nº 0", "b"]


def test_equal_clips_give_equal_bytes(clips: list[Clip], shards: list[Path], tmp_path: Path) -> None:
    again = write_shards(clips, tmp_path, max_bytes=20_000)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in shards]
    assert not list(tmp_path.glob("*.part"))


def test_order_is_a_function_of_seed_and_epoch(shards: list[Path]) -> None:
    one, two = ShardReader(shards, seed=5), ShardReader(list(reversed(shards)), seed=5)
    first, second = names(one), names(one)
    assert (first, second) == (names(two), names(two))
    assert first != second
    assert sorted(first) == sorted(second)
    assert names(ShardReader(shards, seed=6)) != first


@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), (1, 3), (2, 2), (5, 5)])
def test_ranks_and_workers_partition_each_epoch(shards: list[Path], ranks: int, workers: int) -> None:
    readers = [
        ShardReader(shards, seed=1, rank=rank, ranks=ranks, worker=worker, workers=workers)
        for rank in range(ranks)
        for worker in range(workers)
    ]
    for _ in range(2):
        shares = [names(reader) for reader in readers]
        assert [len(share) for share in shares] == [len(reader) for reader in readers]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        together = [name for share in shares for name in share]
        assert len(together) == len(set(together)) == 23


@pytest.mark.parametrize("stop", [0, 1, 7, 11, 12, 15])
def test_resumed_equals_uninterrupted(shards: list[Path], stop: int) -> None:
    whole = ShardReader(shards, seed=2, rank=1, ranks=2, mix=2)
    expected = names(whole) + names(whole)
    cut = ShardReader(shards, seed=2, rank=1, ranks=2, mix=2)
    done: list[str] = []
    while len(done) < stop:
        for item in cut:
            done.append(item.clip.id)
            if len(done) == stop:
                break
    state = json.loads(json.dumps(cut.state_dict()))
    resumed = ShardReader(shards, seed=2, rank=1, ranks=2, mix=2)
    resumed.load_state_dict(state)
    while len(done) < len(expected):
        done += names(resumed)
    assert done[: len(expected)] == expected


def test_place_of_another_reader_is_refused(shards: list[Path]) -> None:
    reader = ShardReader(shards, seed=2, ranks=2)
    for other in (
        ShardReader(shards, seed=3, ranks=2),
        ShardReader(shards, seed=2, ranks=3),
        ShardReader(shards[1:], seed=2, ranks=2),
    ):
        with pytest.raises(DataError, match="the saved"):
            other.load_state_dict(reader.state_dict())
    with pytest.raises(DataError, match="position 99"):
        reader.load_state_dict(reader.state_dict() | {"position": 99})


def test_clip_inside_its_file_is_cut_out(clips: list[Clip], tmp_path: Path) -> None:
    part = Clip("part", clips[0].audio, offset_s=100 / 16000, duration_s=50 / 16000)
    item = next(iter(ShardReader(write_shards([part], tmp_path))))
    samples, _ = soundfile.read(clips[0].audio, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(item.samples, samples.T[:, 100:150])
    assert item.clip.offset_s == 0


@pytest.mark.parametrize("peak", [1.5, np.nan])
def test_sound_beyond_full_scale_is_refused_and_leaves_nothing(tmp_path: Path, peak: float) -> None:
    soundfile.write(tmp_path / "x.wav", np.full(100, peak, np.float32), 16000, subtype="FLOAT")
    with pytest.raises(AuralignError, match=r"clip 'x' peaks at|are NaN"):
        write_shards([Clip("x", str(tmp_path / "x.wav"))], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_no_clips_same_ids_and_full_folders_are_refused(clips: list[Clip], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no clips"):
        write_shards([], tmp_path)
    with pytest.raises(DataError, match="clips 0 and 1 have the same id"):
        write_shards([clips[0], clips[0]], tmp_path)
    write_shards(clips[:1], tmp_path)
    with pytest.raises(DataError, match="holds shards already"):
        write_shards(clips[:1], tmp_path)


def _tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("/etc/x.flac", b""), ("/etc/x.json", b"{}")], "leaves the shard"),
        ([("../x.flac", b""), ("../x.json", b"{}")], "leaves the shard"),
        ([("x.flac", b"")], "key 'x' has .flac"),
        ([("x.json", b"{}")], "key 'x' has .json"),
        ([("x.flac", b""), ("x.flac", b""), ("x.json", b"{}")], "occurs twice"),
    ],
)
def test_unsafe_or_incomplete_shards_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ShardReader([_tar(tmp_path / "a.tar", members)])


def test_link_in_a_shard_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("x.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match="is a link"):
        ShardReader([tmp_path / "a.tar"])


def test_truncated_shard_is_refused_or_named(shards: list[Path], tmp_path: Path) -> None:
    data = shards[0].read_bytes()
    for size in (0, 100, 700, len(data) // 2):
        path = tmp_path / f"{size}.tar"
        path.write_bytes(data[:size])
        with pytest.raises(DataError):
            list(ShardReader([path]))


def test_damaged_members_are_named(tmp_path: Path) -> None:
    for sound, about, message in (
        (b"no flac", b"{}", "cannot be decoded"),
        (b"", b"{", "JSON member is damaged"),
    ):
        path = _tar(tmp_path / "a.tar", [("x.flac", sound), ("x.json", about)])
        with pytest.raises(DataError, match=rf"a\.tar#x\.flac: .*{message}"):
            list(ShardReader([path]))


def test_foreign_shard_with_text_is_read(clips: list[Clip], tmp_path: Path) -> None:
    about = json.dumps({"text": "a dog", "tag": ["x"], "original_data": {}}).encode()
    path = _tar(tmp_path / "a.tar", [("d/7.flac", Path(clips[1].audio).read_bytes()), ("d/7.json", about)])
    clip = next(iter(ShardReader([path]))).clip
    assert (clip.id, clip.captions) == ("7", ("a dog",))


def test_keys_of_different_ids_differ() -> None:
    ids = ["a.b", "a=2Eb", "a/b", "a b", "-a", "=2Da", "", "ü", "x" * 300, "x" * 299]
    assert len({shard_key(name) for name in ids}) == len(ids)
