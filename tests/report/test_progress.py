"""What a person sees while a run works is the tail of its record."""

import io
import json
import time

from rich.console import Console

from raysurl import metrics
from raysurl.report import progress


def lines_of(text):
    return [line for line in text.splitlines() if line.strip()]


def watch(path, during):
    console = Console(file=io.StringIO(), width=200)
    with progress.watching(path, console):
        during()
        time.sleep(2 * progress.POLL_S)
    return lines_of(console.file.getvalue())


def write(path, *lines):
    with (path / "metrics.jsonl").open("a") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def step(number, **more):
    return {"step": number, "epoch": 0.5, "train/loss": 1.25, **more}


def test_events_steps_and_evaluations_are_shown_as_plain_lines_without_a_terminal(tmp_path):
    def during():
        write(tmp_path, {"step": 0, "event": "starting", "total_steps": 8})
        write(tmp_path, step(3, **{"speed/images_per_s": 400.0, "speed/data_wait": 0.25}))
        write(tmp_path, {"step": 4, "eval/knn_top1": 55.5})

    shown = watch(tmp_path, during)
    assert shown[0] == "step 0: starting"
    assert shown[1].startswith("step 4/8: epoch 0.5  loss 1.2500  400 images/s  data wait 25%  ")
    assert shown[1].endswith(" s left")
    assert shown[2] == "step 4: eval/knn_top1 55.50"


def left_in(monkeypatch, *timed):
    """What lines without a terminal say of the time left; `timed`: (seconds since the first, line of the record)."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def lines():
        for seconds, line in timed:
            now[0] = 100.0 + seconds
            yield line

    console = Console(file=io.StringIO(), width=200)
    progress._lines(lines(), console)
    shown = [line for line in lines_of(console.file.getvalue()) if "images/s" in line]
    return [line.split("data wait 0%")[1].strip() for line in shown]


def fast(number):
    return step(number, **{"speed/images_per_s": 400.0, "speed/data_wait": 0.0})


STARTING = {"step": 0, "event": "starting", "total_steps": 1000}


def test_plain_lines_say_the_time_left_from_the_first_one_on(monkeypatch):
    # 10 steps in 20 s, 990 to go; then by the steps after these: 10 in 10 s, 110 in 50 s; at the end none
    found = left_in(
        monkeypatch, (0, STARTING), (20, fast(9)), (30, fast(19)), (70, fast(119)), (1020, fast(999))
    )
    assert found == ["33 min 0 s left", "16 min 20 s left", "6 min 40 s left", "0 s left"]


def test_steps_of_an_earlier_part_of_a_run_say_nothing_of_its_pace(monkeypatch):
    resumed = {"step": 500, "event": "resumed at step 500 of 1000"}
    found = left_in(monkeypatch, (0, STARTING), (1, resumed), (21, fast(509)), (31, fast(519)))
    assert found == ["16 min 20 s left", "8 min 0 s left"]
    again = left_in(
        monkeypatch,
        (0, STARTING),
        (10, fast(9)),
        (900, fast(899)),
        (950, STARTING),
        (970, fast(9)),
        (980, fast(19)),
    )
    assert again[2:] == ["33 min 0 s left", "16 min 20 s left"]


def test_what_stands_in_brackets_is_shown_in_a_terminal_too(tmp_path):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    said = "eval.protocols=[knn] suits photos[red]/[/x] better"
    progress._bar(iter([{"step": 0, "event": said}, fast(3), {"step": 3, "eval/knn_top1": 55.5}]), console)
    assert said in console.file.getvalue()
    assert "eval/knn_top1 55.50" in console.file.getvalue()


def test_a_resumed_run_shows_only_what_is_new_though_its_record_is_rewritten(tmp_path):
    write(tmp_path, {"step": 0, "event": "old"}, step(0), step(1), step(2))

    def during():
        time.sleep(2 * progress.POLL_S)
        metrics.drop_from(tmp_path / "metrics.jsonl", 1)
        write(tmp_path, {"step": 1, "event": "new"})

    assert watch(tmp_path, during) == ["step 1: new"]
    assert [line["step"] for line in metrics.read(tmp_path / "metrics.jsonl")] == [0, 0, 1]


def test_a_line_that_is_half_written_waits_for_its_rest(tmp_path):
    def during():
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 0, "event": "wh')
            file.flush()
            time.sleep(2 * progress.POLL_S)
            file.write('ole"}\n')

    assert watch(tmp_path, during) == ["step 0: whole"]
