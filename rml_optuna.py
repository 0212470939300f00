"""The study as it reads: open, reap, ask, start, watch, report, tell, promote.

    run_study(settings, resume=False, here=Path.cwd(), console=Console())  -> exit code

One driver owns a study. Trials are run folders that a launcher runs; they never see the storage.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from launchers import Job, Running
from launchers.choice import Place, choose_launcher
from study import failures, paste
from study.data_kinds import AnyDataset, check_network
from study.interruption import Interrupted, Interruption
from study.lock import DriverLock
from study.promotion import Promotion, best_of
from study.ready import inputs_of, make_ready
from study.records import (
    SPLIT_FILE,
    Records,
    TrialRecord,
    checkpoint_of,
    run_name,
)
from study.render import network_of, render, render_test
from study.report import print_end, print_end_of_command
from study.settings import Settings
from study.slots import Slot
from study.space import first_points, suggest
from study.start_weights import StartWeights
from study.storage import DEFAULT_STORAGE, MadeWith, Storage, masked, masked_text
from study.view import StudyView
from trainer.data.split import Split
from trainer.errors import InputError, RmlError
from trainer.events import METRICS_FILE, RESULT_FILE, UNREADABLE
from trainer.files import write_json

POLL_SECONDS = 0.1
STOP_SECONDS = 30.0
STARTUP_TRIALS = 5
FEWEST_EPOCHS = 2
"""No trial is pruned on its first epoch, which says little."""

FAILURES_AT_START = 3
RESTARTS = 3
RECORD_ATTRIBUTE = "record"
INTERRUPTED = "interrupted"


class StudyFailed(RmlError):
    """The study cannot go on, and no input is to blame."""

    exit_code = 1


@dataclass
class Driver:
    """What a study works with while it runs."""

    settings: Settings
    folder: Path
    place: Place
    slot: Slot
    dataset: AnyDataset
    split: Split
    start: StartWeights
    study: optuna.Study
    records: Records
    promotion: Promotion
    view: StudyView
    interruption: Interruption
    deadline: float | None
    said_unreadable: set[int] = field(default_factory=set)

    @property
    def split_file(self) -> Path | None:
        """What trials read; a foreign image knows only folders."""
        return None if self.place.foreign else self.folder / SPLIT_FILE

    # ---- one trial ----
    def run_trial(self, trial: optuna.Trial) -> TrialRecord:
        """Runs one trial to its end and tells it; the record of it."""
        params = suggest(trial, self.settings)
        self.view.trial_started(trial.number, params)
        began = time.monotonic()
        for restart in range(RESTARTS + 1):
            run_folder = self.new_run_folder(run_name(trial.number))
            config = self.write_config(run_folder, params)
            record = TrialRecord(
                trial=trial.number,
                state="FAIL",
                optimizer=str(config["optimizer"].get("type", "")).lower(),
                lr=config["optimizer"].get("learning_rate", 0.01),
                loss=str(config["loss"].get("function", "")).lower(),
                parameters=params if self.settings.space else None,
                weights=self.start.label,
                evaluated_on=self.settings.select_on,
                lr_scheduler=params.get("lr_scheduler", ",".join(self.settings.lr_schedules)),
            )
            running = self.start_job(run_folder, trial.number, self.command(run_folder))
            exit_code = self.watch(running, trial, record)
            cut_off = failures.was_cut_off(exit_code) and not record.cause
            if not cut_off or self.interruption.asked or restart == RESTARTS:
                break
            self.view.say(f"trial {trial.number} was stopped from outside; it begins again")
        record.seconds = time.monotonic() - began
        self.tell(trial, record, exit_code, run_folder)
        return record

    def new_run_folder(self, name: str) -> Path:
        """An empty run folder; what a cut-off run left there goes."""
        run_folder = self.folder / name
        if run_folder.exists():
            shutil.rmtree(run_folder)
        run_folder.mkdir(parents=True)
        return run_folder

    def write_config(self, run_folder: Path, params: dict[str, Any]) -> dict[str, Any]:
        """The trial's configuration and its network file: all that the trial is."""
        network = network_of(params, self.settings, self.start.layers)
        self.start.write_network(run_folder, network)
        content = render(
            params,
            self.settings,
            self.dataset,
            layers="layers.json",
            split=self.split_file,
            load=self.start.load,
            foreign=self.place.foreign,
        )
        write_json(run_folder / "config.json", content)
        neural: dict[str, Any] = content["neural_network"]
        return neural

    def command(self, run_folder: Path) -> tuple[str, ...] | None:
        """What a trial runs in the trainer's place, if the user said so."""
        own = self.settings.trial_command
        return own.for_config(run_folder / "config.json") if own else None

    def start_job(
        self, run_folder: Path, trial: int, command: tuple[str, ...] | None = None
    ) -> Running:
        """Starts what lies in a run folder: the trainer, or a command."""
        inputs = inputs_of(self.dataset, self.split_file, self.start)
        if command and self.settings.trial_command:
            inputs += tuple(self.settings.trial_command.inputs)
        job = Job(
            run_folder=run_folder,
            study=self.settings.study_name,
            trial=trial,
            device=self.slot.device,
            threads=self.slot.threads,
            inputs=inputs,
            cores=self.slot.cores,
            command=command,
        )
        running = self.place.launcher.launch(job)
        self.interruption.running = running
        return running

    def watch(self, running: Running, trial: optuna.Trial, record: TrialRecord) -> int:
        """Follows a trial epoch by epoch, stops it where it should; its exit code."""
        known = dict(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        since = time.monotonic()
        try:
            while True:
                exit_code = running.exit_code  # before the poll: nothing comes after it
                for event in running.poll():
                    if event.get("event") == "epoch" and not record.cause:
                        if event.get("seconds") is None:  # a script need not tell them
                            event["seconds"] = time.monotonic() - since
                        since = time.monotonic()
                        self.report(event, trial, record, known)
                    elif event.get("event") == UNREADABLE:
                        self.unreadable(trial.number, event)
                    elif event.get("event") == "start" and "fills" in str(event.get("weights")):
                        record.weights = self.typed(str(event["weights"]))
                if exit_code is not None:
                    return exit_code
                if record.cause == "" and self.interruption.asked:
                    record.cause = INTERRUPTED
                unfinished = record.epochs < self.settings.num_epochs
                if record.cause == "" and unfinished and self.late():
                    record.cause = f"{INTERRUPTED} by the time limit"
                if record.cause:
                    running.stop(STOP_SECONDS)
                    continue
                time.sleep(POLL_SECONDS)
        except BaseException:
            running.stop(grace_seconds=0)
            raise
        finally:
            self.interruption.running = None

    def unreadable(self, trial: int, event: dict[str, Any]) -> None:
        """A line that tells nothing: said once a trial, then passed over."""
        if trial not in self.said_unreadable:
            self.said_unreadable.add(trial)
            line, why = event["line"], event["why"]
            self.view.say(f"trial {trial}: a line of {METRICS_FILE} is passed over ({why}): {line}")

    def report(
        self,
        event: dict[str, Any],
        trial: optuna.Trial,
        record: TrialRecord,
        known: dict[int, float],
    ) -> None:
        """An epoch: keeps the best, reports to the study, prunes where it is hopeless."""
        epoch, value = int(event["epoch"]), event.get(self.settings.metric)
        record.epochs = max(record.epochs, epoch)
        if value is not None and (record.value is None or value > record.value):
            record.value, record.epoch_max_acc = value, epoch
            record.max_acc = event.get("accuracy") or 0.0
            record.foreground_dice, record.iou = event.get("foreground_dice"), event.get("iou")
            record.class_dice = event.get("class_dice")
        self.view.epoch(trial.number, event)
        if value is None:
            return
        if epoch in known:  # a trial that begins again: the study heard of this epoch before
            return
        trial.report(value, epoch)
        known[epoch] = value
        if epoch < self.settings.num_epochs and self.settings.prune and trial.should_prune():
            record.cause = f"pruned at epoch {epoch}: below the median of the trials before"

    def tell(
        self, trial: optuna.Trial, record: TrialRecord, exit_code: int, run_folder: Path
    ) -> None:
        """Classifies how the trial ended and tells it to the study, with its cause."""
        reason = failures.reason_of(run_folder, exit_code)
        if self.settings.trial_command:
            reason = failures.reason_of_command(run_folder, exit_code)
        state = TrialState.FAIL
        if record.cause.startswith("pruned"):
            state = TrialState.PRUNED
        elif record.cause:
            pass
        elif exit_code != 0:
            own = self.settings.trial_command
            record.cause = reason if own else failures.cause_of(exit_code, reason)
        elif record.value is None:
            record.cause = f"ended without a single {self.settings.metric}"
            if told := failures.last_line(run_folder):
                record.cause += f"; it said: {told}"
        else:
            state = TrialState.COMPLETE
            if record.epochs < self.settings.num_epochs:
                record.cause = (
                    f"it ended after {record.epochs} of {self.settings.num_epochs} epochs"
                )
        record.state = state.name
        if state == TrialState.FAIL:
            record.value, record.max_acc, record.epoch_max_acc = None, 0.0, 0
            record.foreground_dice = record.iou = record.class_dice = None
        trial.set_user_attr(RECORD_ATTRIBUTE, record.__dict__)
        trial.set_user_attr("cause", record.cause)
        self.study.tell(trial, record.value if state == TrialState.COMPLETE else None, state=state)
        self.view.trial_ended(record)
        if failures.is_users_mistake(exit_code):
            told = f"trial {trial.number} ended with a mistake of input"
            raise InputError("", f"{told}\n{self.typed(reason)}")

    def typed(self, text: str) -> str:
        """A trial's words, with the file that the user gave in place of the study's copy of it."""
        for source, target in [self.start.copy] if self.start.copy else []:
            text = text.replace(str(target), str(source))
        if self.start.module_source and self.start.module:
            copies = rf"{re.escape(str(self.folder))}/[^\s:,]*{re.escape(self.start.module.name)}"
            text = re.sub(copies, lambda _: str(self.start.module_source), text)
        return text

    # ---- many trials ----
    def ended(self) -> list[TrialRecord]:
        """Records of all trials that were told, in trial order."""
        told = self.study.get_trials(deepcopy=False, states=_TOLD)
        return [
            TrialRecord.from_dict(t.user_attrs[RECORD_ATTRIBUTE]) for t in told if _has_record(t)
        ]

    def seed_sampler(self) -> None:
        """A new sampler for the next trial, from study seed and place in the study alone.

        The place counts the trials that ended by themselves, so that a study that was interrupted
        asks what it would have asked without.
        """
        place = len([r for r in self.ended() if not r.cause.startswith(INTERRUPTED)])
        seed = (self.settings.seed * 1_000_003 + place) % 2**32
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)

    def adopt(self) -> list[optuna.Trial]:
        """Trials that a killed driver left running keep their numbers and begin again; those that
        were interrupted come again under a new number, with the same parameters."""
        left = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        repeated = {t.user_attrs.get("repeats") for t in self.study.get_trials(deepcopy=False)}
        for record in self.ended():
            if record.cause.startswith(INTERRUPTED) and record.trial not in repeated:
                params = self.study.trials[record.trial].params
                self.study.enqueue_trial(params, user_attrs={"repeats": record.trial})
        self.seed_sampler()
        return [optuna.trial.Trial(self.study, t._trial_id) for t in left]

    def run(self) -> None:
        """Trials until there are enough of them; raises Interrupted, InputError, StudyFailed."""
        waiting = self.adopt()
        self.keep_records()
        failures_at_start = 0
        while True:
            done = [r for r in self.ended() if not r.cause.startswith(INTERRUPTED)]
            if self.interruption.asked:
                raise Interrupted
            if not waiting and len(done) >= self.settings.num_trials:
                return
            if self.late():
                self.view.say("the time limit is reached")
                return
            self.seed_sampler()
            trial = waiting.pop(0) if waiting else self.study.ask()
            record = self.run_trial(trial)
            self.keep_records()
            if not record.cause.startswith(INTERRUPTED):
                failures_at_start = failures_at_start + 1 if record.state == "FAIL" else 0
            if failures_at_start >= FAILURES_AT_START and not best_of(self.ended()):
                log = failures.last_lines(self.folder / run_name(trial.number))
                told = f"the first {failures_at_start} trials failed; the end of the last log:"
                raise StudyFailed(f"{told}\n{log}")

    def keep_records(self) -> None:
        """Brings list, best model and kept checkpoints up to what the study knows."""
        records = self.ended()
        if records:
            self.records.write_list(records, self.settings.metric)
            self.promotion.promote(best_of(records))
            self.records.keep_checkpoints(records, self.settings.keep_checkpoints)

    def late(self) -> bool:
        """Whether the time limit is over."""
        return self.deadline is not None and time.monotonic() > self.deadline

    # ---- the best model ----
    def test(self, best: TrialRecord) -> dict[str, Any] | None:
        """Scores of the best checkpoint on the test images, read once for it; None where a foreign
        image or a command of the user tells none, or the test images have no truth."""
        unscored = self.place.foreign or self.settings.trial_command
        if unscored or not self.dataset.test_has_truth:
            return None
        run_folder = self.folder / f"test-{best.trial:04d}"
        if not (run_folder / RESULT_FILE).exists():
            self.new_run_folder(run_folder.name)
            checkpoint = checkpoint_of(self.folder / run_name(best.trial), best.epoch_max_acc)
            if checkpoint is None:
                raise StudyFailed(f"the checkpoint of trial {best.trial} is gone")
            shutil.copyfile(checkpoint, run_folder / "best.pt")
            if self.start.module:
                shutil.copyfile(self.start.module, run_folder / self.start.module.name)
            content = render_test(
                self.settings,
                self.dataset,
                best.loss,
                load="best.pt",
                split=str(self.split_file),
                output=None,
            )
            write_json(run_folder / "config.json", content)
            running = self.start_job(run_folder, best.trial)
            while (exit_code := running.exit_code) is None:
                running.poll()
                if self.interruption.asked:
                    running.stop(STOP_SECONDS)
                    shutil.rmtree(run_folder)
                    raise Interrupted
                time.sleep(POLL_SECONDS)
            (run_folder / "best.pt").unlink()
            if exit_code != 0:
                reason = failures.reason_of(run_folder, exit_code)
                (run_folder / RESULT_FILE).unlink(missing_ok=True)
                raise StudyFailed(f"the test images could not be evaluated: {reason}")
        return read_result(run_folder)


_TOLD = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def _has_record(trial: FrozenTrial) -> bool:
    return RECORD_ATTRIBUTE in trial.user_attrs


def run_study(settings: Settings, *, resume: bool, here: Path, console: Console) -> int:
    """Runs a study to its end; the exit code. Raises InputError for a mistake of input."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for number in (signal.SIGTERM, signal.SIGHUP):  # until trials run they are a Ctrl-C
        signal.signal(number, signal.default_int_handler)
    folder = here / "runs" / settings.study_name
    storage = Storage(settings.storage)
    try:
        storage.check_name(settings.study_name, resume, folder)
        own = settings.trial_command
        if own is None:
            check_network(settings)
        place = choose_launcher(
            settings.launcher,
            settings.docker_image,
            settings.docker_image_given,
            settings.gpu,
            own is not None,
        )
        if own and place.launcher.name == "process":
            own.check_program()
        existed = folder.exists()
        with DriverLock(folder):
            try:
                return _run_locked(settings, resume, here, folder, console, storage, place)
            finally:
                if not existed and not (folder / SPLIT_FILE).exists():
                    shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):  # stays where it has studies
                    folder.parent.rmdir()
    finally:
        storage.close()


def _run_locked(
    settings: Settings,
    resume: bool,
    here: Path,
    folder: Path,
    console: Console,
    storage: Storage,
    place: Place,
) -> int:
    ready = make_ready(settings, resume, here, folder, console, place)
    settings, dataset, split, slot, start = ready[:5]
    split_file = folder / SPLIT_FILE
    made_with = MadeWith(
        settings.options(),
        settings.fixed(),
        dataset.fingerprint,
        start.network_checksum,
        start.checksum,
    )
    if resume:
        study = storage.resume(settings.study_name, made_with)
    ready.print(place, console)
    if not resume:
        study = storage.create(settings.study_name, made_with, settings.metric)
        for point in first_points(settings):
            study.enqueue_trial(point)
    write_json(split_file, split.model_dump())
    start.put_in_place()
    study.pruner = optuna.pruners.MedianPruner(
        n_startup_trials=STARTUP_TRIALS,
        n_warmup_steps=max(FEWEST_EPOCHS, math.ceil(settings.num_epochs / 5)),
    )
    place.launcher.reap(folder)
    view = StudyView(console, settings.num_trials, settings.num_epochs, settings.metric)
    records = Records(folder, here, view.say)
    timeout = settings.timeout_seconds
    with Interruption() as interruption:
        driver = Driver(
            settings=settings,
            folder=folder,
            place=place,
            slot=slot,
            dataset=dataset,
            split=split,
            start=start,
            study=study,
            records=records,
            promotion=Promotion(settings, folder, here, place, dataset, start, records),
            view=view,
            interruption=interruption,
            deadline=time.monotonic() + timeout if timeout else None,
        )
        try:
            with view:
                view.earlier(driver.ended())
                driver.run()
            return finish(driver, console)
        except InputError:
            if not resume and all(_is_mistake(r) for r in driver.ended()):
                storage.delete(settings.study_name)
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except Interrupted:
            line = f"interrupted; go on with: {resume_command(settings)}"
            console.print(line, markup=False, soft_wrap=True)
            return 130
        except (OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            lines = str(error.__cause__ or error).strip().splitlines()
            raise StudyFailed(
                f"the study stopped: {masked_text(lines[0] if lines else repr(error))}\n"
                f"nothing written before is lost; go on with: {resume_command(settings)}"
            ) from None


def _is_mistake(record: TrialRecord) -> bool:
    return record.cause.startswith("mistake of input")


def resume_command(settings: Settings) -> str:
    """What to type to go on; a storage with a secret has to be typed by the one who knows it."""
    command = f"{paste.driver()} --study-name {shlex.quote(settings.study_name)} --resume"
    if settings.storage == DEFAULT_STORAGE:
        return command
    if masked(settings.storage) != settings.storage:
        return f"{command} (with your --storage)"
    return f"{command} --storage {shlex.quote(settings.storage)}"


def finish(driver: Driver, console: Console) -> int:
    """Test numbers of the best model, and the end's summary; the exit code."""
    driver.keep_records()
    records = driver.ended()
    best = best_of(records)
    if best is None:
        causes = "; ".join(sorted({r.cause for r in records if r.cause})) or "no trial ended"
        raise StudyFailed(
            f"no trial finished: {causes}\nto go on: {resume_command(driver.settings)}"
        )
    scores = driver.test(best)
    told = {"accuracy": best.max_acc, "evaluated_on": "test"} if driver.place.foreign else scores
    driver.promotion.promote(best, told, ended=True)
    launcher = driver.place.launcher.name
    if driver.settings.trial_command:
        print_end_of_command(driver.settings, driver.folder, best, records, console)
        return 0
    validation = read_result(driver.folder / run_name(best.trial))
    print_end(driver.settings, driver.split, best, records, validation, scores, launcher, console)
    return 0


def read_result(run_folder: Path) -> dict[str, Any] | None:
    """The scores that a run left in its result.json; None for a foreign image."""
    try:
        result = json.loads((run_folder / RESULT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    scores: dict[str, Any] | None = result.get("evaluation")
    return scores
