"""summary.txt, summary.csv and study.json: what stands in them, and what cannot be smuggled in."""

import csv
import io
import json
from dataclasses import replace
from random import Random

import pytest

from contract.table import Status
from lambdas.publish_report.aggregation import experiment_result
from lambdas.publish_report.findings import findings
from lambdas.publish_report.results import StudyOutcome
from lambdas.publish_report.tables import study_json, summary_csv, summary_text
from tests.unit.report_fixtures import study_outcome


def text_of(outcome: StudyOutcome) -> str:
    return summary_text(outcome, [experiment_result(experiment) for experiment in outcome.experiments])


def csv_of(outcome: StudyOutcome) -> list[dict[str, str]]:
    sheet = summary_csv([experiment_result(experiment) for experiment in outcome.experiments])
    return list(csv.DictReader(io.StringIO(sheet)))


def with_cause(cause: str) -> StudyOutcome:
    outcome = study_outcome(workers=(2,), failing="sync_2workers")
    first, *others = outcome.experiments
    return replace(outcome, experiments=[replace(first, cause=cause), *others])


def test_the_classic_table_is_aligned_and_gives_no_figures_of_a_failure_but_its_cause() -> None:
    lines = text_of(study_outcome(workers=(1, 2), failing="sync_2workers")).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Experiment"))
    header, rule, *rows = lines[start : start + 6]
    assert header.split() == ["Experiment", "Mode", "Workers", "Time(s)", "Epoch(s)", "Accuracy(%)"]
    assert {len(line) for line in (header, rule, *rows)} == {len(header)}
    names = ["sync_1worker", "sync_2workers", "async_1worker", "async_2workers"]
    assert sorted(row.split()[0] for row in rows) == sorted(names)
    assert [row.split() for row in rows if "–" in row] == [["sync_2workers", "sync", "2", "–", "–", "–"]]
    below = "\n".join(lines[start + 6 :])
    assert "Not completed: 1 of 4" in below
    assert "sync_2workers: FAILED: worker 1 was killed (exit code 137" in below
    assert "emulated compute: exponential, mean 50 ms" in lines


def test_a_failure_that_was_tolerated_is_told_with_the_status() -> None:
    failing = study_outcome(workers=(2,), failing="sync_2workers")
    assert text_of(failing).splitlines()[0].endswith(": FAILED with 1 failed experiment")
    tolerated = replace(failing, status=Status.COMPLETED)
    assert text_of(tolerated).splitlines()[0].endswith(": COMPLETED with 1 failed experiment (tolerated)")
    assert text_of(study_outcome(workers=(2,))).splitlines()[0].endswith(": COMPLETED")


def test_a_study_of_which_nothing_completed_has_a_table_without_rows() -> None:
    outcome = study_outcome(workers=(2,))
    nothing = replace(
        outcome, experiments=[replace(e, status=Status.ABORTED, records=()) for e in outcome.experiments]
    )
    assert "Not completed: 2 of 2" in text_of(nothing)
    assert "sync_2workers: ABORTED: no cause known" in text_of(nothing)
    assert text_of(replace(outcome, experiments=()))


def test_terminals_are_told_no_escape_sequences() -> None:
    text = text_of(with_cause("boom\x1b[31m\nsecond\x07 line"))
    assert "boom\\x1b[31m second\\x07 line" in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_csv_parses_back_to_the_figures() -> None:
    outcome = study_outcome(workers=(1, 4), seeds=(0, 1), failing="async_4workers_seed1")
    results = [experiment_result(experiment) for experiment in outcome.experiments]
    rows = csv_of(outcome)
    assert [row["experiment"] for row in rows] == [result.experiment_name for result in results]
    for row, result in zip(rows, results, strict=True):
        assert int(row["seed"]) == result.seed
        assert row["status"] == result.status
        time = row["training_time_seconds"]
        assert (float(time) if time else None) == result.training_seconds
    assert rows[-1]["records_expected"] == ""
    assert all(name == name.lower().replace(" ", "_") for name in rows[0])


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r\n+", " @"])
def test_csv_text_never_begins_like_a_formula(start: str) -> None:
    row = csv_of(with_cause(f'{start}cmd|" /C calc"!A0'))[0]
    assert row["cause"].startswith("'")
    assert row["cause"].endswith('cmd|" /C calc"!A0')


def test_study_json_repeats_the_document_and_names_each_file() -> None:
    outcome = study_outcome(workers=(2,), failing="async_2workers")
    results = [experiment_result(experiment) for experiment in outcome.experiments]
    study = json.loads(study_json(outcome, results, findings(results)))
    assert study["study"] == outcome.document
    assert study["status"] == "FAILED"
    assert [e["file"] for e in study["experiments"]] == [
        "experiments/sync_2workers.json",
        "experiments/async_2workers.json",
    ]


def test_tables_do_not_depend_on_the_order_of_records() -> None:
    outcome = study_outcome(failing="async_4workers")
    random = Random(7)
    shuffled = replace(
        outcome,
        experiments=[
            replace(e, records=random.sample([*e.records] * 2, k=2 * len(e.records)))
            for e in outcome.experiments
        ],
    )
    assert text_of(shuffled) == text_of(outcome)
    assert csv_of(shuffled) == csv_of(outcome)
