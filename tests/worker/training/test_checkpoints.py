import json

import pytest
from tiny_run import events

from worker.stages import Report
from worker.training import checkpoints

IDENTITY = {"data": "abc", "learning_rate": 1e-3}


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "events.jsonl")


def save(out, step, *, content=b"weights", identity=IDENTITY):
    def fill(folder):
        (folder / "adapter.bin").write_bytes(content)
        (folder / "optimizer.bin").write_bytes(b"moments")

    return checkpoints.write(out / "checkpoints", step, fill, identity=identity, environment={"device": "cpu"})


def test_the_newest_of_all_attempts_is_found(tmp_path, report):
    save(tmp_path / "1", 10)
    newest = save(tmp_path / "1", 20)
    save(tmp_path / "2", 15)
    (tmp_path / "3").mkdir()
    found = checkpoints.newest([tmp_path / "3", tmp_path / "2", tmp_path / "1"], IDENTITY, report)
    assert found == newest
    assert found.step == 20
    assert found.bytes == len(b"weights") + len(b"moments")
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
    assert checkpoints.newest([tmp_path], IDENTITY, report).step == 10
    (warning,) = events(tmp_path, "warning")
    assert warning["code"] == "checkpoint_skipped"
    assert "step-000020" in warning["message"]


def test_one_of_other_data_or_settings_is_passed_over_and_the_difference_is_named(tmp_path, report):
    save(tmp_path, 10)
    assert checkpoints.newest([tmp_path], IDENTITY | {"learning_rate": 2e-3}, report) is None
    (warning,) = events(tmp_path, "warning")
    assert "another learning_rate" in warning["message"]


def test_a_write_that_breaks_off_leaves_no_checkpoint_and_can_be_repeated(tmp_path, report):
    def break_off(folder):
        (folder / "adapter.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(tmp_path / "checkpoints", 10, break_off, identity=IDENTITY, environment={})
    assert checkpoints.newest([tmp_path], IDENTITY, report) is None
    save(tmp_path, 10)
    assert checkpoints.newest([tmp_path], IDENTITY, report).step == 10
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000010"]


def test_the_newest_are_kept(tmp_path):
    for step in (999_999, 1_000_000, 8, 9):
        save(tmp_path, step)
    checkpoints.prune(tmp_path / "checkpoints", 2)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-999999", "step-1000000"}
    checkpoints.prune(tmp_path / "checkpoints", 1)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-1000000"}


def test_the_manifest_describes_every_file(tmp_path):
    path = save(tmp_path, 10).path
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"adapter.bin", "optimizer.bin"}
    assert manifest["step"] == 10
    assert manifest["environment"] == {"device": "cpu"}
