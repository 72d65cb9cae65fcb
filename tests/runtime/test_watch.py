"""The watch over the processes of a run: who is waited for, who is lost, and when."""

import json

import pytest

from vireid_jax.runtime import EXIT_PEER_LOST, watch


class World:
    """Processes with one clock, whose threads are turns that a test takes."""

    def __init__(self, folder, count, start_timeout=100.0, silence_timeout=30.0):
        self.now = 0.0
        self.folder, self.count = folder, count
        self.said, self.left = [], {}
        self.limits = dict(start_timeout=start_timeout, silence_timeout=silence_timeout)
        self.watches = {}

    def start(self, process):
        self.watches[process] = watch.Watch(
            self.folder,
            process,
            self.count,
            say=lambda text: self.said.append((process, text)),
            leave=lambda code: self.left.setdefault(process, (self.now, code)),
            clock=lambda: self.now,
            **self.limits,
        )
        return self.watches[process]

    def start_all(self, phase):
        for process in range(self.count):
            self.start(process).phase(phase)

    def run(self, seconds, without=()):
        """Lets time pass; every process but those `without` beats and looks."""
        until = self.now + seconds
        while self.now < until:
            self.now += watch.BEAT_S
            for process, each in self.watches.items():
                if process not in (*without, *self.left):
                    each.write()
                    each.look()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "run", 3)


def test_nothing_is_said_while_all_are_there(world):
    for process in range(3):
        world.start(process)
    world.run(90)
    for phase in ("data", "compile", "train"):
        for each in world.watches.values():
            each.phase(phase)
        world.run(70)
    for process, each in world.watches.items():
        each.end(0 if process else 42)
    world.run(70)
    assert not world.said and not world.left


def test_who_has_not_come_is_named_and_waited_for_no_longer_than_allowed(world):
    world.start(0), world.start(2)
    world.run(62)
    assert [p for p, _ in world.said] == [0, 2]
    text = world.said[0][1]
    assert "in phase 'connect' for 6" in text
    assert "process 1: has not started; was the command given to all workers?" in text
    assert "process 2" not in text.split("not there with it")[1]
    world.run(60)
    assert {code for _, code in world.left.values()} == {EXIT_PEER_LOST}
    assert set(world.left) == {0, 2}
    at, _ = world.left[0]
    assert 100 < at < 100 + 3 * watch.GRACE_S
    assert world.said[-1][1].startswith("error: 1 of 3 processes cannot be reached")


def test_a_file_of_an_earlier_start_is_no_sign_of_life(world):
    old = world.start(1)
    old.phase("train")
    old.end(1, "error: the disk is full")
    world.watches.clear()
    world.start(0), world.start(2)
    world.run(62)
    text = world.said[0][1]
    assert "process 1: has not started again" in text
    assert "its last run was in phase 'train', ended with code 1: error: the disk is full" in text
    assert not world.left
    world.start(1)  # now it comes
    world.run(100)
    assert not world.left


def test_a_silent_process_is_lost(world):
    world.start_all("train")
    world.run(10)
    world.run(28, without=[1])
    assert not world.left
    world.run(28, without=[1])
    assert set(world.left) == {0, 2}
    assert world.left[0][0] < 10 + 30 + 3 * watch.GRACE_S
    text = world.said[-1][1]
    assert "1 of 3 processes" in text and "was in phase 'train'" in text
    assert "process 1:" in text and "is in phase 'train', last heard of 3" in text
    assert "goes on from the last checkpoint" in text


def test_an_error_of_one_process_ends_the_others_at_once(world):
    world.start_all("data")
    world.run(10)
    world.watches.pop(1).end(1, "error: no images")
    began = world.now
    world.run(20)
    assert set(world.left) == {0, 2}
    assert world.left[2][0] - began <= watch.GRACE_S + 2 * watch.BEAT_S
    assert "ended with code 1 in phase 'data': error: no images" in world.said[-1][1]


def test_who_ended_well_is_not_lost(tmp_path):
    """It waits for the others on its way out, or has nothing left to do with them."""
    for code in (0, 42, 130):
        world = World(tmp_path / str(code), 3)
        world.start_all("train")
        world.run(10)
        world.watches.pop(1).end(code)
        world.run(100)
        assert not world.left, code


def test_who_lags_behind_is_told_once_a_minute_by_the_first(world):
    world.start_all("data")
    world.watches[0].phase("compile"), world.watches[2].phase("compile")
    world.run(125)
    assert [p for p, _ in world.said] == [0, 0]
    assert "is in phase 'compile' for 60 s; not there with it" in world.said[0][1]
    assert "process 1:" in world.said[0][1] and "process 2:" not in world.said[0][1]
    assert "in phase 'data'" in world.said[0][1]
    assert not world.left


def test_own_silence_is_not_the_others(world):
    """A machine that was stopped, or a file system that hung, finds all files unchanged."""
    world.start_all("train")
    world.run(10)
    world.now += 500  # nobody ran
    world.run(20)
    assert not world.left


def test_suspects_of_an_error(world):
    world.start_all("train")
    world.run(10)
    assert not world.watches[0].suspects()
    world.run(5 * watch.BEAT_S, without=[1])
    assert list(world.watches[0].suspects()) == [1]
    assert not world.left


def test_the_first_lingers_until_the_others_have_ended(world, monkeypatch):
    for process in range(3):
        world.start(process)
    naps = []

    def nap(seconds):
        naps.append(seconds)
        world.now += seconds
        if len(naps) == 5:
            world.watches[1].end(43), world.watches[2].end(1)

    monkeypatch.setattr(watch.time, "sleep", nap)
    world.watches[0].end(1, "error")
    world.watches[0].linger(10)
    assert len(naps) == 5
    world.start(2)  # again, and does not end
    world.watches[0].linger(3)
    assert world.now == pytest.approx(3.5, abs=0.2)


def test_a_torn_or_foreign_file_is_no_status(world):
    each = world.start(0)
    path = world.folder / watch.HOSTS / "0001.json"
    for text in ("", '{"process": 1', "[]", json.dumps({"version": 2})):
        path.write_text(text)
        each.look()
    assert "has not started" in each.describe(1)
    assert not list(path.parent.glob("*.part"))


def test_one_process_has_no_watch():
    watch.phase("train")
    watch.end(0)
    assert watch.current() is None
