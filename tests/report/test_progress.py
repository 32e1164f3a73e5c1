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
    assert shown[1] == "step 4/8: epoch 0.5  loss 1.2500  400 images/s  data wait 25%"
    assert shown[2] == "step 4: eval/knn_top1 55.50"


def test_plain_lines_say_the_time_left(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    speed = {"speed/images_per_s": 400.0, "speed/data_wait": 0.0}

    def lines():
        yield {"step": 0, "event": "starting", "total_steps": 1000}
        for number, seconds in ((9, 0), (19, 10), (119, 50), (999, 1000)):
            now[0] = 100 + seconds
            yield step(number, **speed)

    console = Console(file=io.StringIO(), width=200)
    progress._lines(lines(), console)
    shown = lines_of(console.file.getvalue())[1:]
    # 10 steps in 10 s and 980 to go; then 110 in 50 s and 880 to go; at the end nothing
    ends = ["data wait 0%", "16 min 20 s left", "6 min 40 s left", "0 s left"]
    assert [line.endswith(end) for line, end in zip(shown, ends, strict=True)] == [True] * 4


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
