import json
import os
import threading

import pytest
from tiny_run import events

from worker.stages import Report
from worker.training import checkpoints

LOCK = {"data": "abc", "training.learning_rate": 1e-3, "packages.torch": "2.13", "spec": "1"}
FILES = {"adapter.bin": b"weights", "optimizer.bin": b"moments"}


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "events.jsonl")


def save(out, step, *, files=FILES, lock=LOCK):
    def fill(folder):
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return checkpoints.write(out / "checkpoints", step, fill, lock=lock)


def newest(outs, report, lock=LOCK):
    return next(checkpoints.usable(outs, lock, report), None)


def test_those_of_all_attempts_are_offered_the_newest_first(tmp_path, report):
    save(tmp_path / "1", 10)
    last = save(tmp_path / "1", 20)
    save(tmp_path / "2", 15)
    (tmp_path / "3").mkdir()
    found = list(checkpoints.usable([tmp_path / "3", tmp_path / "2", tmp_path / "1"], LOCK, report))
    assert found[0] == last
    assert [checkpoint.step for checkpoint in found] == [20, 15, 10]
    assert found[0].bytes == len(b"weights") + len(b"moments")
    assert not events(tmp_path, "warning")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["adapter.bin", "manifest.json"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, report, damage, name):
    save(tmp_path, 10)
    damage(save(tmp_path, 20).path / name)
    assert newest([tmp_path], report).step == 10
    (warning,) = events(tmp_path, "warning")
    assert (warning["code"], warning["checkpoint"], warning["reason"]) == ("checkpoint_skipped", "step-000020", "damaged")
    assert "step-000020" in warning["message"]


@pytest.mark.parametrize("manifest", ["{}", "[]", "null", '{"version": 2, "step": 20, "files": {}, "lock": 3}', "\xff"])
def test_a_manifest_of_another_shape_is_damage(tmp_path, report, manifest):
    save(tmp_path, 10)
    (save(tmp_path, 20).path / "manifest.json").write_text(manifest, encoding="latin-1")
    assert newest([tmp_path], report).step == 10


def test_one_of_another_step_under_this_name_is_damage(tmp_path, report):
    checkpoint = save(tmp_path, 10)
    checkpoint.path.rename(checkpoint.path.with_name("step-000020"))
    assert newest([tmp_path], report) is None


def test_one_of_other_data_or_settings_is_passed_over_and_the_difference_is_named(tmp_path, report):
    save(tmp_path, 10)
    assert newest([tmp_path], report, LOCK | {"training.learning_rate": 2e-3}) is None
    (warning,) = events(tmp_path, "warning")
    assert "another training.learning_rate" in warning["message"]
    assert warning["reason"] == "differs"
    assert warning["changes"] == [{"item": "training.learning_rate", "old": 1e-3, "new": 2e-3}]


def test_one_of_other_packages_is_used_with_a_warning_that_says_so(tmp_path, report):
    save(tmp_path, 10)
    assert newest([tmp_path], report, LOCK | {"packages.torch": "2.14", "spec": "2"}).step == 10
    (warning,) = events(tmp_path, "warning")
    assert (warning["code"], warning["checkpoint"]) == ("checkpoint_degraded", "step-000010")
    assert warning["changes"] == [{"item": "packages.torch", "old": "2.13", "new": "2.14"}]
    assert "packages.torch was 2.13 and is 2.14" in warning["message"]


def test_a_write_that_breaks_off_leaves_no_checkpoint_and_can_be_repeated(tmp_path, report):
    def break_off(folder):
        (folder / "adapter.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(tmp_path / "checkpoints", 10, break_off, lock=LOCK)
    assert newest([tmp_path], report) is None
    save(tmp_path, 10)
    assert newest([tmp_path], report).step == 10
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000010"]


def test_whoever_reads_while_others_are_written_and_removed_sees_whole_ones_only(tmp_path):
    folder, stop, broken, seen, step = tmp_path / "checkpoints", threading.Event(), [], 0, 0
    folder.mkdir()

    def write_many():
        """Until enough of them were read; a reader that gets to see none has two thousand chances."""
        nonlocal step
        while step < 60 or (seen <= 10 and step < 2000):
            step += 1
            save(tmp_path, step, files={f"{number}.bin": os.urandom(20_000) for number in range(8)})
            checkpoints.prune(folder, 1)
        stop.set()

    writer = threading.Thread(target=write_many)
    writer.start()
    while not stop.is_set():
        for path in folder.glob("step-*"):
            try:
                files = json.loads((path / "manifest.json").read_text())["files"]
                for name in files:
                    (path / name).stat()
                seen += 1
            except OSError as problem:
                broken += [problem] if path.exists() else []
    writer.join()
    assert broken == []
    assert seen > 10
    assert [path.name for path in folder.iterdir()] == [f"step-{step:06d}"]


def test_pruning_leaves_the_newest(tmp_path):
    for step in (5, 100, 20):
        save(tmp_path, step)
    checkpoints.prune(tmp_path / "checkpoints", 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000020", "step-000100"]
