"""Commands of a study: run, plan, status, retry, tables, compare, publish; and of a run or an allocation."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from harness import compose, groups
from harness.allocators.file import read_allocation
from harness.cli import words
from harness.config import RunConfig
from harness.core.places import IS_INSTALLED, ROOT
from harness.execute import check_points, execute_each, finished, is_unsaved
from harness.models.checkpoint import find_checkpoint, weights_hash
from harness.overrides import plugins_in, say
from harness.prepare import Run, look_up
from harness.record import schema
from harness.record.lease import submitted
from harness.record.request import RequestMatcher, only, request_key
from harness.record.schema import Record
from harness.record.trackers import Report, check_tracker, track_report
from harness.report import allocation
from harness.report.numbers import duration
from harness.report.outputs import Outputs, Subject, write_outputs
from harness.report.tidy import Cell
from harness.runtime.errors import UserError, unknown
from harness.study import launch
from harness.study.estimate import GPU, Estimate, estimate
from harness.study.grid import Study, load_study, output_folder
from harness.study.plan import Found, Progress, progress_of
from harness.study.progress import SweepProgress


def dispatch(command: str, overrides: Sequence[str], replaced: Sequence[str] = ()) -> int:
    """Run a named command over `study=… scale=…` and further overrides; returns the exit status.

    Args:
        replaced: sentences on overrides that do not count, to be said once nothing is left to be refused.

    Raises:
        UserError: unknown command or study, or what the command cannot do.
    """
    if command == "allocation":
        return show_allocation(overrides)
    if command not in COMMANDS:
        raise unknown("command", command, words.COMMANDS)
    groups.register(plugins_in(overrides))
    if command == "prefetch" and not any(text.startswith("study=") for text in overrides):
        return prefetch_run(overrides)
    with nullcontext() if command in RUNNING else _uncollected():
        study = study_of(overrides)
        say(replaced)
        return COMMANDS[command](study)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Thousands of records, which all stay, are not searched for garbage again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def study_of(overrides: Sequence[str]) -> Study:
    """The study that `study=… scale=… cluster=…` names, the other overrides applied to every point or its launcher.

    Raises:
        UserError: no `study=` among them, or an unknown study, scale or cluster.
    """
    values = {"scale": "embedded", "cluster": "local"}
    extra, launcher = [], []
    for text in overrides:
        key, _, value = text.partition("=")
        if key in ("study", "scale", "cluster"):
            values[key] = value
        elif launch.is_of_launcher(text):
            launcher.append(text)
        else:
            extra.append(text)
    if "study" not in values:
        raise UserError("name a study: study=<paper>_<item>, for example study=sparsellm_table2.")
    launch.check_launcher(values["cluster"], launcher)
    return load_study(values["study"], values["scale"], extra, values["cluster"], launcher)


def run_study(name: str, overrides: Sequence[str], replaced: Sequence[str] = ()) -> int:
    """Run what a study lacks, then write and print its table. Returns 1 if a point failed, was lost or still runs.

    Raises:
        UserError: a mistake in the study or the overrides, before anything runs.
    """
    study = study_of([f"study={name}", *overrides])
    say(replaced)
    made = _run_points(study, range(len(study.points)))
    with _uncollected():
        return tables(study, made)


def _run_points(study: Study, chosen: Iterable[int], announcement: str = "") -> dict[int, Found]:
    """Run those of the chosen points, by number, that are not done, here or through a launcher.

    Args:
        announcement: what is printed once every point has been looked at.

    Returns:
        The records found or made here, by the number of their point.
    """
    numbers = [number for number in chosen if study.points[number].cfg]
    configs = [(str(study.points[number]), _config(study, number)) for number in numbers]
    ready = check_points(configs, here=study.cluster in compose.THIS_MACHINE)
    if announcement:
        print(announcement, flush=True)
    if study.cluster == "local":
        return _run_here(study, dict(zip(numbers, ready, strict=True)))
    progress = progress_of(study)
    todo = [number for number in numbers if _wanted(_config(study, number), progress[number])]
    _announce(study, len(numbers), len(todo))
    with submitted(study.records, [_asked(study, number) for number in todo], lambda: _ended(study, todo)):
        launch.launch(study, todo)
    return {}


def _asked(study: Study, number: int) -> RequestMatcher:
    return only(request_key(_config(study, number).composed))


def _ended(study: Study, numbers: Iterable[int]) -> set[RequestMatcher]:
    """Those of these points that have a record, of a failure too."""
    items = progress_of(study)
    return {_asked(study, number) for number in numbers if items[number].record}


def _wanted(cfg: RunConfig, item: Progress) -> bool:
    """Return whether a point has to run: it is not done, is forced, its model is to be saved, or has other weights by
    now."""
    if item.to_run or cfg.force or item.record is None:
        return item.to_run or cfg.force
    return is_unsaved(cfg, item.record) or _has_other_weights(cfg, item)


def _has_other_weights(cfg: RunConfig, item: Progress) -> bool:
    """Return whether the weights at a record's path are others by now; they are hashed only where they are younger."""
    assert item.record is not None and item.path is not None
    checkpoint = find_checkpoint(cfg.model)
    if max(path.stat().st_mtime for path in checkpoint.weights) <= item.path.stat().st_mtime:
        return False
    return item.record.provenance.get("weights_sha256") not in (None, weights_hash(checkpoint))


def _announce(study: Study, cells: int, todo: int) -> None:
    print(f"{study.name} at scale {study.scale}: {cells - todo} cells done, {todo} to run", flush=True)


def _run_here(study: Study, ready: Mapping[int, Run]) -> dict[int, Found]:
    todo = [number for number, item in ready.items() if not finished(item)]
    _announce(study, len(ready), len(todo))
    made = {}
    ran = 0
    progress = SweepProgress({number: str(study.points[number]) for number in ready})
    for number, (path, record, here) in execute_each(ready, lambda number: str(study.points[number]), quiet=True):
        made[number] = (path, record)
        said = progress.ended(number, record, is_new=here)
        if here:
            ran += 1
            print(said, flush=True)
        print(f"record: {path}", flush=True)
    print(f"ran {ran} of {len(ready)} cells", flush=True)
    return made


def _config(study: Study, number: int) -> RunConfig:
    cfg = study.points[number].cfg
    assert cfg is not None
    return cfg


def plan(study: Study) -> int:
    """Print the points: done, to do, skipped and why, with an estimate of time and memory for what is left.

    Memory is said for a GPU of this machine, or for one of `estimate.GPU` bytes where it has none.
    """
    device = "cuda" if torch.cuda.is_available() or study.scale == "paper" else "cpu"
    total = 0.0
    items = progress_of(study)
    for item in items:
        guess = estimate(item.point.cfg, device) if item.point.cfg and item.to_run else None
        if guess:
            total += guess.seconds
        cost = f"  ~{duration(guess.seconds)}, {_memory(guess, device)}" if guess else ""
        print(f"{item.state:8}{item.point}{cost}{'  (' + item.why + ')' if item.why else ''}")
    print(
        f"{_counts(items)}; about {duration(total)} left on {device}, by the rates stated in harness/study/estimate.py"
    )
    return 0


def _memory(guess: Estimate, device: str) -> str:
    if device == "cpu":
        return f"{guess.peak_bytes / 2**30:.1f} GiB"
    return guess.fits(torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else GPU)


def status(study: Study) -> int:
    """Print how far the study is, from its files: who runs which points, what is lost, failed or skipped and why."""
    items = progress_of(study)
    for item in items:
        if item.state not in ("done", "to do"):
            print(f"{item.state:8}{item.point}  ({item.why})")
    print(_counts(items))
    return 0


def retry(study: Study) -> int:
    """Run the points of a study that failed, were lost, or left no record, again; not those that somebody is at."""
    again = {number: item for number, item in enumerate(progress_of(study)) if item.to_run}
    states = Counter(item.state for item in again.values())
    failed, lost = states.pop("failed", 0), states.pop("lost", 0)
    others = f", and {states.total()} without a current record" if states else ""
    made = _run_points(study, again, f"{failed} failed and {lost} lost points to run again{others}")
    return _status(progress_of(study, made))


def _status(items: Sequence[Progress]) -> int:
    """1 if a point failed or was lost, or is still running elsewhere."""
    return 0 if all(item.has_ended for item in items) else 1


def tables(study: Study, made: Mapping[int, Found] | None = None) -> int:
    """Write and print the table of a study from its records alone. Returns 1 if a point failed."""
    items = progress_of(study, made)
    outputs = _write(study, items, output_folder(study))
    print(outputs.markdown)
    print(f"table and figure: {outputs.folder}")
    return _status(items) if made is not None else int(any(item.state == "failed" for item in items))


def compare(study: Study) -> int:
    """Print every cell beside the reported number, with its verdict and the reason for it."""
    items = progress_of(study)
    outputs = _write(study, items, output_folder(study))
    print(outputs.comparison_markdown)
    return 0


def publish(study: Study) -> int:
    """Pack records (without this machine's paths), table and figure of a study into `results/published`.

    Raises:
        UserError: fewer records are there than are published, of a study that was narrowed, or of another folder; or
            this is no checkout.
    """
    if IS_INSTALLED:
        raise UserError("publish writes into a checkout of the project; run it there by python -m harness.")
    items = progress_of(study)
    folder = ROOT / "results" / "published" / study.name / study.scale
    found = [item for item in items if item.path]
    before = sum(1 for _ in itertools.chain(schema.read_all(folder), schema.read_all(folder / "records")))
    if len(found) < max(1, before):
        raise UserError(f"{study.records} holds {len(found)} records of {study.name}, {before} are published.")
    folder.mkdir(parents=True, exist_ok=True)
    schema.pack(map(_whole, found), folder / schema.PACKED)
    shutil.rmtree(folder / "records", ignore_errors=True)  # one file a record, as studies were published before
    _write(study, items, folder)
    print(f"published: {folder.relative_to(ROOT)} ({len(found)} records)")
    return 0


def _whole(item: Progress) -> Record:
    """A point's record with its sites, as it would be of a run in the project's own folder."""
    assert item.path is not None and item.record is not None
    record = item.record if item.path.name == schema.PACKED else schema.read(item.path)
    config = {**record.config, "records": "results/records", "cache": "results/records/.cache", "save": None}
    return dataclasses.replace(record, config=config)


def prefetch(study: Study) -> int:
    """Download the models and texts of a study, so that its runs work offline."""
    for point in study.points:
        if point.cfg is not None:
            look_up(point.cfg)
    print("everything the study needs is here")
    return 0


def prefetch_run(overrides: Sequence[str]) -> int:
    """Download the model and texts of one run."""
    look_up(compose.compose_run(overrides))
    print("everything the run needs is here")
    return 0


def show_allocation(arguments: Sequence[str]) -> int:
    """Print what a record or a saved allocation asks of every matrix, and write it to a folder if one is named.

    Raises:
        UserError: no file is named, it holds no allocation, or the folder cannot be written.
    """
    if len(arguments) not in (1, 2):
        raise UserError(
            "name a file, and a folder to write to if you like: allocation <record or allocation.json> out/."
        )

    content = read_allocation(arguments[0]).plain()
    print(allocation.to_markdown(content))
    if len(arguments) == 2:
        allocation.write(content, Path(arguments[1]))
        print(f"table and figure: {arguments[1]}")
    return 0


def _write(study: Study, items: Sequence[Progress], folder: Path) -> Outputs:

    tracker = next((point.cfg.tracker for point in study.points if point.cfg), None)
    if tracker:
        check_tracker(tracker, study.records)
    cells = [Cell(item.point.axes, item.record, item.state, item.why) for item in items]
    subject = Subject(study.name, study.scale, study.title, study.table, study.tasks, study.reproduces)
    outputs = write_outputs(subject, cells, folder)
    if tracker:
        report = Report(study.name, study.scale, outputs.tables, [outputs.folder / "figure.png"])
        track_report(tracker, report, study.records)
    return outputs


def _counts(items: Sequence[Progress]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(item.state for item in items).items())


COMMANDS: dict[str, Callable[[Study], int]] = {
    "plan": plan,
    "status": status,
    "retry": retry,
    "tables": tables,
    "compare": compare,
    "publish": publish,
    "prefetch": prefetch,
}
RUNNING = ("retry", "prefetch")
"""The commands that do more than read records."""
