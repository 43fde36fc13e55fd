"""The whole report: all files, plots that are pictures, a page that parses, escapes and stays at home."""

import json
import re
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from random import Random
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.aggregation import KEY_OF, Mode
from contract.results import REPORT, comparison_plot, experiment_file, scaling_plot
from contract.table import Status
from lambdas.publish_report.aggregation import experiment_result
from lambdas.publish_report.page import render
from lambdas.publish_report.plots import SIZE, plots
from lambdas.publish_report.results import ExperimentOutcome, StudyOutcome
from lambdas.publish_report.style import DOTS_PER_INCH, LOOKS
from tests.unit.report_fixtures import study_outcome

HOSTILE = "</p><script>alert(1)</script><img src=https://example.com/x onerror=alert(1)>\"'&"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects elements, and refuses tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value for _, given, value in self.attributes if given == name]


def page_of(outcome: StudyOutcome) -> tuple[str, Page]:
    text = render(outcome)["report.html"].decode()
    return text, Page(text)


def hostile_study() -> StudyOutcome:
    outcome = study_outcome(workers=(2,), failing="sync_2workers")
    failed, completed = outcome.experiments
    *records, last = failed.records
    said = last.model_copy(update={"reason": HOSTILE})
    started = completed.records[0].model_copy(update={"cpu_model": HOSTILE, "hostname": HOSTILE})
    tasks = [
        task.model_copy(update={"stopped_reason": HOSTILE, "stop_code": HOSTILE, "last_lines": (HOSTILE,)})
        for task in failed.tasks
    ]
    return replace(
        outcome,
        name=HOSTILE,
        cause=HOSTILE,
        document={"name": HOSTILE, HOSTILE: [HOSTILE]},
        warnings=[HOSTILE],
        experiments=[
            replace(failed, cause=HOSTILE, records=[*records, said], tasks=tasks),
            replace(completed, records=[started, *completed.records[1:]]),
        ],
    )


@pytest.fixture(scope="module")
def study() -> StudyOutcome:
    return study_outcome(workers=(1, 2, 4), failing="sync_2workers")


@pytest.fixture(scope="module")
def files(study: StudyOutcome) -> dict[str, bytes]:
    return render(study)


def test_every_file_of_the_results_tree_is_there(study: StudyOutcome, files: dict[str, bytes]) -> None:
    expected = {"report.html", "summary.csv", "summary.txt", "study.json"}
    expected |= {experiment_file(outcome.experiment.name) for outcome in study.experiments}
    expected |= {scaling_plot("png"), scaling_plot("svg")}
    # with 2 workers sync failed: there is nothing to compare
    expected |= {comparison_plot(workers, suffix) for workers in (1, 4) for suffix in ("png", "svg")}
    assert files.keys() == expected


def test_pngs_are_pictures_of_the_stated_size_without_a_date(files: dict[str, bytes]) -> None:
    pictures = [content for path, content in files.items() if path.endswith(".png")]
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", picture[16:24])
        assert (width, height) == tuple(round(inches * DOTS_PER_INCH) for inches in SIZE)
        assert b"tEXt" not in picture


def test_every_plot_says_that_compute_was_emulated(files: dict[str, bytes]) -> None:
    for path, content in files.items():
        if path.endswith(".svg"):
            words = " ".join(ElementTree.fromstring(content).itertext())  # noqa: S314 - made by our own plots
            assert "emulated compute: exponential, mean 50 ms" in words


def test_shuffled_and_repeated_records_give_the_same_bytes(
    study: StudyOutcome, files: dict[str, bytes]
) -> None:
    random = Random(3)
    arrived = [
        replace(e, records=random.sample([*e.records] * 2, k=2 * len(e.records))) for e in study.experiments
    ]
    again = render(replace(study, experiments=arrived))
    assert [path for path in files if files[path] != again[path]] == []


def test_the_page_is_whole_and_fetches_nothing(files: dict[str, bytes]) -> None:
    text = files["report.html"].decode()
    page = Page(text)
    assert "script" not in page.tags
    targets = [*page.values("src"), *page.values("href"), *page.values("xlink:href")]
    assert targets
    assert [target for target in targets if re.match(r"(?i)\s*(https?:|//|javascript:)", target)] == []
    assert re.findall(r"url\((?!#)[^)]*\)|@import", text) == []
    assert any("default-src 'none'" in value for value in page.values("content"))
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert set(links) == files.keys() - {"report.html"}


def test_the_page_can_be_read_by_those_who_do_not_see_it(files: dict[str, bytes]) -> None:
    text = files["report.html"].decode()
    page = Page(text)
    assert page.tags.count("caption") == page.tags.count("table") > 4
    assert all(scope in {"row", "col"} for scope in page.values("scope"))
    assert page.values("role").count("img") == page.tags.count("svg") == 3
    identities = page.values("id")
    assert len(identities) == len(set(identities))
    pointed_at = {value for name in ("aria-labelledby", "xlink:href") for value in page.values(name)}
    assert {value.removeprefix("#") for value in pointed_at} <= set(identities)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(identities)


def test_failures_with_their_cause_come_before_all_findings(files: dict[str, bytes]) -> None:
    text = files["report.html"].decode()
    failed, finding = text.index("1 of 6 experiments did not complete"), text.index('class="headline"')
    assert failed < text.index("worker 1 was killed (exit code 137") < finding


def test_a_failed_experiment_shows_its_root_its_tasks_and_what_they_wrote_last(
    files: dict[str, bytes],
) -> None:
    text = files["report.html"].decode()
    failures = text[text.index('class="failures"') : text.index('class="headline"')]
    assert "First to fail: worker 1" in failures
    rows = re.findall(r"<th scope=\"row\">(.*?)</th>\s*<td[^>]*>(.*?)</td>", failures)
    assert rows == [("worker 1", "137"), ("worker 0", "1"), ("server", "1")]
    assert "Essential container in task exited" in failures
    assert "2026-03-01 12:00:30" in failures
    assert "Last log lines of worker 1" in failures
    assert "<pre>lockstep-worker: epoch 2 is done</pre>" in failures
    assert "Last log lines of worker 0" not in failures
    # And the same in the files
    summary = files["summary.txt"].decode()
    assert "    first to fail: worker 1\n    worker 1: exit code 137 (EssentialContainerExited, " in summary
    assert "    last log lines of worker 1:\n      lockstep-worker: epoch 2 is done\n" in summary
    result = json.loads(files["experiments/sync_2workers.json"])
    assert result["first_failure"] == "worker 1"
    assert [(end["role"], end["rank"], end["exit_code"]) for end in result["task_ends"]] == [
        ("worker", 1, 137),
        ("worker", 0, 1),
        ("server", 0, 1),
    ]
    assert result["task_ends"][0]["last_lines"] == ["lockstep-worker: epoch 2 is done"]
    # Of completed ones nothing of the kind
    completed = json.loads(files["experiments/async_2workers.json"])
    assert (completed["first_failure"], completed["task_ends"]) == ("", [])


def test_an_aborted_study_says_why_also_where_every_experiment_had_completed() -> None:
    outcome = study_outcome(workers=(2,))
    why = "the execution of the study has ended: ABORTED (Impatience: it took too long)"
    aborted = replace(outcome, status=Status.ABORTED, cause=why)
    text, _ = page_of(aborted)
    assert text.index("The study did not end") < text.index(why) < text.index('class="headline"')
    assert '<span class="status aborted">Aborted</span>' in text
    files = render(aborted)
    assert files["summary.txt"].decode().splitlines()[1] == why
    assert json.loads(files["study.json"])["cause"] == why


def test_a_study_without_failures_shows_no_failures() -> None:
    text, _ = page_of(study_outcome(workers=(2,), compute={"mode": "real"}))
    assert 'class="failures"' not in text
    assert "emulated" not in text.lower()


def test_a_tolerated_failure_stands_beside_the_status() -> None:
    failing = study_outcome(workers=(2,), failing="sync_2workers")
    text, _ = page_of(replace(failing, status=Status.COMPLETED))
    assert 'class="status completed partly">Completed with 1 failed experiment (tolerated)<' in text
    assert "not completed" not in text


def test_the_page_says_how_to_run_it_again_here_and_in_an_account(files: dict[str, bytes]) -> None:
    text = files["report.html"].decode()
    here, account = text.index("run again.json --local</pre>"), text.index("run again.json\n")
    assert text.index("on this machine") < here < text.index("In your account") < account


def test_difference_from_theory_is_never_called_overhead_alone(files: dict[str, bytes]) -> None:
    text = " ".join(files["report.html"].decode().split())
    assert text.count("plus the luck of the draws, for which") == 2
    assert "is overhead:" not in text


def test_an_overloaded_machine_is_told_right_below_the_headline() -> None:
    outcome = study_outcome(workers=(4,), compute={"mode": "real"}, host="laptop")
    text, _ = page_of(outcome)
    warning = text.index('class="warning">')
    assert text.index('class="headline"') < warning < text.index('class="note"')
    assert "times are not those of 5 machines" in text[warning : warning + 200]
    files = render(outcome)
    assert "times are not those of 5 machines" in files["summary.txt"].decode()
    assert "times are not those of 5 machines" in json.loads(files["study.json"])["warnings"][0]


def test_text_from_logs_and_studies_is_only_ever_text() -> None:
    text, page = page_of(hostile_study())
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.values("onerror") == []
    assert HOSTILE not in text
    # name (title and heading), document, warning, causes, reason, CPU model; of three tasks codes, reason and lines
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 8 + 3 * 3


def test_where_nothing_completed_the_scaling_plot_says_so() -> None:
    outcome = study_outcome(workers=(2,))
    nothing = replace(
        outcome,
        status=Status.FAILED,
        experiments=[replace(e, status=Status.FAILED, records=()) for e in outcome.experiments],
    )
    drawn = render(nothing)
    assert b"No experiment completed" in drawn[scaling_plot("svg")]
    assert drawn[scaling_plot("png")].startswith(b"\x89PNG")
    Page(drawn["report.html"].decode())
    Page(render(replace(outcome, experiments=()))["report.html"].decode())


def test_completed_experiments_whose_records_were_lost_are_still_reported() -> None:
    outcome = study_outcome(workers=(2, 4))
    lost = replace(outcome, experiments=[replace(e, records=()) for e in outcome.experiments])
    text, _ = page_of(lost)
    assert "nothing arrived" in text


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_part_of_the_records_makes_a_report(data: st.DataObject) -> None:
    outcome = study_outcome(workers=(1, 2), epochs=2)

    def thinned(experiment: ExperimentOutcome) -> ExperimentOutcome:
        share = data.draw(st.sampled_from([0.0, 0.2, 0.6, 0.9]))
        random = Random(data.draw(st.integers(0, 2**32)))
        kept = [record for record in experiment.records if random.random() < share]
        return replace(experiment, records=kept, status=data.draw(st.sampled_from(Status)))

    page_of(replace(outcome, experiments=[thinned(experiment) for experiment in outcome.experiments]))


def test_several_seeds_and_many_epochs_are_drawn() -> None:
    outcome = study_outcome(workers=(2, 4), seeds=(0, 1, 2), epochs=40)
    drawn = plots([experiment_result(experiment) for experiment in outcome.experiments])
    assert b"range over seeds" in drawn[scaling_plot("svg")]
    assert b"range over seeds" in drawn[comparison_plot(4, "svg")]


@pytest.mark.parametrize(
    ("workers", "title"), [((1, 2), "Speed-up (×)"), ((2, 4), "Speed-up against 2 workers (×)")]
)
def test_the_plot_names_the_baseline_of_speed_up(workers: tuple[int, ...], title: str) -> None:
    outcome = study_outcome(workers=workers, epochs=1)
    drawn = plots([experiment_result(experiment) for experiment in outcome.experiments])
    assert title in list(ElementTree.fromstring(drawn[scaling_plot("svg")]).itertext())  # noqa: S314 - our own plot


def test_every_mode_is_drawn_in_a_look_of_its_own() -> None:
    told = {"backup_workers": 1, "staleness_bound": 2, "k": 2, "dc_lambda": 0.04}
    outcome = study_outcome(modes=tuple(Mode), workers=(2, 4), aggregation=told, epochs=1)
    drawn = plots([experiment_result(experiment) for experiment in outcome.experiments])
    words = " ".join(ElementTree.fromstring(drawn[scaling_plot("svg")]).itertext())  # noqa: S314 - our own plot
    assert all(mode.value in words for mode in Mode)
    for look in (LOOKS[mode] for mode in Mode):
        assert look.colour.encode() in drawn[scaling_plot("svg")]
    assert (
        len({look.colour for look in LOOKS.values()})
        == len({look.marker for look in LOOKS.values()})
        == len(Mode)
    )


def explained(*modes: Mode) -> set[str]:
    """The terms that a page explains below its laws."""
    told = {"backup_workers": 1, "staleness_bound": 2, "k": 2, "dc_lambda": 0.04}
    wanted = {key: value for mode in modes if (key := KEY_OF.get(mode)) for value in [told[key]]}
    text, _ = page_of(study_outcome(modes=modes, workers=(4,), aggregation=wanted, epochs=1))
    return set(re.findall(r"<dt>(.*?)</dt>", text[text.index('id="laws"') : text.index('id="split"')]))


def test_the_page_explains_the_laws_of_its_modes_and_no_others() -> None:
    times = {f"Time between updates {when}" for when in ("while all trained", "over the whole run")}
    staleness = {f"Staleness {when}" for when in ("while all trained", "over the whole run")}
    assert explained(Mode.BACKUP) == {"Step"}
    assert explained(Mode.ASYNC) == explained(Mode.KASYNC) == times | staleness
    assert explained(Mode.SSP) == staleness


def test_a_mode_told_two_things_makes_two_lines() -> None:
    outcomes = [
        outcome
        for k in (1, 2)
        for outcome in study_outcome(modes=["ksync"], workers=(2, 4), aggregation={"k": k}).experiments
    ]
    drawn = plots([experiment_result(outcome) for outcome in outcomes])
    words = " ".join(ElementTree.fromstring(drawn[scaling_plot("svg")]).itertext())  # noqa: S314 - our own plot
    assert "ksync (k = 1)" in words
    assert "ksync (k = 2)" in words


def test_a_cold_start_does_not_pay_for_plotting() -> None:
    check = "import sys, lambdas.publish_report.page; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_over_one_number_of_workers_all_conditions_are_drawn_in_place_of_their_scaling() -> None:
    told: dict[str, object] = {"backup_workers": 1}
    one = render(study_outcome(modes=("sync", "backup"), workers=(4,), aggregation=told))
    two = render(study_outcome(modes=("sync", "backup"), workers=(2, 4), aggregation=told))
    assert {"plots/side_by_side_4workers.png", "plots/side_by_side_4workers.svg"} <= one.keys()
    assert "Scaling with" not in one[REPORT].decode()
    assert "Figures of the scaling plot" in one[REPORT].decode()
    assert "Scaling with" in two[REPORT].decode()
    for files in (one, two):
        assert "emulated compute: exponential" in files["plots/side_by_side_4workers.svg"].decode()


def test_what_was_injected_stands_in_the_head_in_every_plot_and_in_the_table() -> None:
    outcome = study_outcome(modes=("sync", "async"), workers=(2,), network={"bandwidth_mbit_per_second": 50})
    files = render(outcome)
    label = "injected network: 50 Mbit/s"
    assert files[REPORT].decode().count(label) >= 2
    assert "The network was injected" in files[REPORT].decode()
    assert label in files["summary.txt"].decode()
    svgs = [content.decode() for path, content in files.items() if path.endswith(".svg")]
    assert svgs
    assert all(label in svg for svg in svgs)
