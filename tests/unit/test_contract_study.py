"""Study documents: every mistake is named at once, and whatever is accepted can be planned."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.aggregation import KEY_OF, Aggregation, Mode
from contract.catalogue import MODELS_FOR, STORED, Dataset, ModelName
from contract.checkpoint import Checkpointing
from contract.compute import Compute
from contract.document import MAX_WORKERS
from contract.errors import StudyRefused
from contract.exchange import Exchange
from contract.faults import Crash, Faults
from contract.network import Network, WorkerNetwork
from contract.plan import Experiment, plan, study_of_group, task_group
from contract.study import (
    MAX_EXPERIMENTS,
    MAX_STUDY_SECONDS,
    ExplicitExperiment,
    Matrix,
    Study,
    TaskSize,
    parse_study,
)
from contract.task import TaskEnvironment, shared_environment
from contract.training import Training
from lambdas.plan_study.launch import MAX_ITEMS_BYTES, launch_item, launch_items

EVERY_MODE = "'sync', 'async', 'backup', 'ssp', 'ksync', 'kasync', 'staleness-aware' or 'dc-asgd'"
FAIL_CAUSE_CHARACTERS = 32_768
STATE_OUTPUT_BYTES = 262_144


def refusal(document: object) -> StudyRefused:
    with pytest.raises(StudyRefused) as refused:
        parse_study(document)
    return refused.value


def planned(document: dict[str, Any]) -> list[Experiment]:
    return plan(parse_study(document), "study-1")


def names(document: dict[str, Any]) -> list[str]:
    return [experiment.name for experiment in planned(document)]


def test_an_empty_document_is_sync_against_async_with_four_workers() -> None:
    assert [(e.name, e.mode, e.workers, e.seed) for e in planned({})] == [
        ("sync_4workers", Mode.SYNC, 4, 0),
        ("async_4workers", Mode.ASYNC, 4, 0),
    ]


@pytest.mark.parametrize(
    ("preset", "workers"), [("quick", [4]), ("recommended", [2, 4, 8]), ("full", [1, 2, 4, 8, 16, 32])]
)
def test_a_preset_says_how_many_workers(preset: str, workers: list[int]) -> None:
    experiments = planned({"preset": preset})
    assert [e.workers for e in experiments if e.mode is Mode.SYNC] == workers
    assert [e.workers for e in experiments if e.mode is Mode.ASYNC] == workers


def test_the_matrix_goes_before_the_preset() -> None:
    document = {"preset": "full", "matrix": {"mode": ["async"], "workers": [3, 1]}}
    assert names(document) == ["async_3workers", "async_1worker"]


def test_several_seeds_stand_in_the_names() -> None:
    assert names({"matrix": {"workers": [2]}, "seeds": [7, 0]}) == [
        "sync_2workers_seed7",
        "async_2workers_seed7",
        "sync_2workers_seed0",
        "async_2workers_seed0",
    ]
    assert names({"matrix": {"workers": [2]}, "seeds": [7]}) == ["sync_2workers", "async_2workers"]


def test_explicit_experiments_are_taken_as_written() -> None:
    document = {
        "experiments": [
            {"name": "baseline", "mode": "sync", "workers": 1},
            {"mode": "async", "workers": 3, "seed": 5},
        ]
    }
    assert [(e.name, e.mode, e.workers, e.seed) for e in planned(document)] == [
        ("baseline", Mode.SYNC, 1, 0),
        ("async_3workers_seed5", Mode.ASYNC, 3, 5),
    ]


def test_a_matrix_tells_each_mode_its_own_and_keeps_the_classic_names() -> None:
    experiments = planned(
        {
            "matrix": {"mode": ["sync", "ksync", "ssp"], "workers": [4]},
            "aggregation": {"k": 3, "staleness_bound": 2},
        }
    )
    assert [(e.name, e.aggregation) for e in experiments] == [
        ("sync_4workers", Aggregation()),
        ("ksync_4workers", Aggregation(k=3)),
        ("ssp_4workers", Aggregation(staleness_bound=2)),
    ]


def test_explicit_experiments_may_say_their_own_and_are_told_apart_by_it() -> None:
    document = {
        "experiments": [
            {"mode": "ssp", "workers": 4},
            {"mode": "ssp", "workers": 4, "aggregation": {"staleness_bound": 8}},
            {"mode": "kasync", "workers": 4, "aggregation": {"k": 2}},
            {"mode": "dc-asgd", "workers": 4, "aggregation": {"dc_lambda": 0.04}},
            {"mode": "dc-asgd", "workers": 4, "aggregation": {"dc_lambda": 1}},
        ],
        "aggregation": {"staleness_bound": 0},
    }
    assert [(e.name, e.aggregation.value(e.mode)) for e in planned(document)] == [
        ("ssp_s0_4workers_seed0", 0),
        ("ssp_s8_4workers_seed0", 8),
        ("kasync_4workers_seed0", 2),
        ("dc-asgd_lambda0_04_4workers_seed0", 0.04),
        ("dc-asgd_lambda1_4workers_seed0", 1.0),
    ]


def test_explicit_experiments_may_travel_in_their_own_way() -> None:
    """So that one study compares compressions, or bandwidths."""
    document = {
        "experiments": [
            {"name": "plain", "mode": "sync", "workers": 4},
            {"name": "half", "mode": "sync", "workers": 4, "exchange": {"compression": "fp16"}},
            {"name": "slow", "mode": "sync", "workers": 4, "network": {"latency_ms": 5}, "exchange": {}},
        ],
        "exchange": {"transport": "tcp", "tls": False},
        "network": {"bandwidth_mbit_per_second": 100},
    }
    of_study = (Exchange(transport="tcp", tls=False), Network(bandwidth_mbit_per_second=100))
    assert [(e.exchange, e.network) for e in planned(document)] == [
        of_study,
        (Exchange(compression="fp16"), of_study[1]),
        (Exchange(), Network(latency_ms=5)),
    ]
    unnamed = [{**entry, "name": None} for entry in document["experiments"]]  # type: ignore[dict-item]  # they are
    assert refusal({**document, "experiments": unnamed}).problems == (
        "experiments: the name 'sync_4workers_seed0' is used more than once; give each its own 'name'",
    )


def test_a_link_of_one_worker_says_what_is_not_as_everybodys() -> None:
    network = parse_study(
        {"network": {"latency_ms": 2, "workers": [{"rank": 1, "bandwidth_mbit_per_second": 10}]}}
    ).network
    assert network.of(0) == Network(latency_ms=2)
    assert network.of(1) == Network(latency_ms=2, bandwidth_mbit_per_second=10)
    assert Network(workers=[WorkerNetwork(rank=0, latency_ms=1)]).injected


def test_a_matrix_shares_what_is_said_of_faults_and_servers() -> None:
    document = {
        "faults": {"crashes": [{"rank": 3, "step": 0}, {"rank": 2, "step": 5, "restart_after_seconds": 1}]},
        "on_worker_loss": "continue",
        "checkpoint": {"location": "/checkpoints"},
    }
    for experiment in planned(document):
        assert experiment.faults == Faults(
            crashes=[Crash(rank=3, step=0), Crash(rank=2, step=5, restart_after_seconds=1)]
        )
        assert experiment.on_worker_loss == "continue"
        assert experiment.checkpoint == Checkpointing(interval_seconds=30, location="/checkpoints")
    for experiment in planned({"shards": 3}):
        assert (experiment.shards, experiment.task_count) == (3, 7)


def test_a_crash_that_ends_an_experiment_may_be_studied() -> None:
    (experiment, _) = planned({"faults": {"crashes": [{"rank": 1, "step": 20}]}})
    assert experiment.on_worker_loss == "fail"
    assert [crash.restart_after_seconds for crash in experiment.faults.crashes] == [None]


@pytest.mark.parametrize(("dataset", "models"), MODELS_FOR.items())
def test_a_dataset_brings_its_model(dataset: Dataset, models: tuple[ModelName, ...]) -> None:
    assert {e.training.model for e in planned({"training": {"dataset": str(dataset)}})} == {models[0]}


@pytest.mark.parametrize("dataset", Dataset)
def test_a_stored_dataset_lies_where_the_deployment_keeps_it_unless_the_study_says_otherwise(
    dataset: Dataset,
) -> None:
    def place(**said: str) -> str | None:
        study = parse_study({"training": {"dataset": str(dataset), **said}})
        (experiment, *_) = plan(study, "study-1", "s3://bucket/datasets")
        return experiment.training.data

    if dataset in STORED:
        assert place() == f"s3://bucket/datasets/{dataset}"
        assert place(data="/data") == "/data"
    else:
        assert place() is None
    assert {e.training.data for e in planned({"training": {"dataset": str(dataset)}})} == {None}


@pytest.mark.parametrize("data", ["/", "/data sets/ä", "s3://bucket", "s3://my-bucket.eu/some/prefix/"])
def test_data_lie_in_a_folder_or_under_an_s3_prefix(data: str) -> None:
    training = {"dataset": "mnist", "data": data}
    assert {e.training.data for e in planned({"training": training})} == {data}


@pytest.mark.parametrize(
    "data", ["", "data", "~/data", "S3://bucket", "s3://", "s3://Bucket/x", "https://x/y", "/a\nb", "/" * 257]
)
def test_data_that_are_neither_are_refused(data: str) -> None:
    problems = refusal({"training": {"dataset": "mnist", "data": data}}).problems
    assert problems[0].startswith("training.data: ")


@pytest.mark.parametrize(
    ("document", "problems"),
    [
        ([], ["document: must be an object, not []"]),
        (None, ["document: must be an object, not None"]),
        ({"trainning": {}}, ["trainning: unknown key; did you mean 'training'?"]),
        ({"training": {"epoch": 3}}, ["training.epoch: unknown key; did you mean 'epochs'?"]),
        (
            {"matrix": {"seeds": [0]}},
            ["matrix.seeds: unknown key; known keys: mode, workers"],
        ),
        (
            {"experiments": [{"mode": "sync", "worker": 2}]},
            [
                "experiments[0].workers: missing",
                "experiments[0].worker: unknown key; did you mean 'workers'?",
            ],
        ),
        (
            {"training": {"learning_rate": "0.1"}},
            ["training.learning_rate: must be a valid number, not '0.1'"],
        ),
        (
            {"training": {"learning_rate": float("nan")}},
            ["training.learning_rate: must be a finite number, not nan"],
        ),
        ({"matrix": {"mode": ["asp"]}}, [f"matrix.mode[0]: must be {EVERY_MODE}, not 'asp'"]),
        (
            {"aggregation": {"k": 3}},
            ["aggregation.k: belongs to mode ksync or kasync, and here is only async, sync; leave it out"],
        ),
        (
            {"matrix": {"mode": ["ssp", "ksync", "kasync", "backup", "dc-asgd"]}, "aggregation": {}},
            [
                "aggregation.staleness_bound: missing; mode ssp needs it",
                "aggregation.k: missing; mode ksync needs it",
                "aggregation.k: missing; mode kasync needs it",
                "aggregation.backup_workers: missing; mode backup needs it",
                "aggregation.dc_lambda: missing; mode dc-asgd needs it",
            ],
        ),
        (
            {
                "matrix": {"mode": ["ksync", "kasync", "backup"], "workers": [2, 4]},
                "aggregation": {"k": 3, "backup_workers": 2},
            },
            [
                "aggregation.k: 3 gradients cannot come from 2 workers of mode ksync",
                "aggregation.k: 3 gradients cannot come from 2 workers of mode kasync",
                "aggregation.backup_workers: 2 of 2 workers of mode backup as backups"
                " leaves none whose gradient counts",
            ],
        ),
        (
            {
                "experiments": [
                    {"mode": "ssp", "workers": 2, "aggregation": {"k": 1}},
                    {"mode": "sync", "workers": 2},
                ],
                "aggregation": {"dc_lambda": 1},
            },
            [
                "aggregation.dc_lambda: belongs to mode dc-asgd, and here is only ssp, sync; leave it out",
                "experiments[0].aggregation.k: belongs to mode ksync or kasync, and here is only ssp; leave it out",
                "experiments[0].aggregation.staleness_bound: missing; mode ssp needs it",
            ],
        ),
        (
            {"training": {"optimizer": "adam", "momentum": 0.9}},
            [
                "training.momentum: belongs to optimizer sgd, not to adam; leave it out",
                "training.learning_rate: missing; the default is one of sgd, adam takes less, such as 0.001",
            ],
        ),
        (
            {
                "matrix": {"mode": ["staleness-aware"]},
                "training": {"optimizer": "adam", "learning_rate": 0.001},
            },
            ["training.optimizer: adam undoes the weights of mode staleness-aware; choose sgd"],
        ),
        (
            {"training": {"schedule": "cosine", "decay_epochs": 2}},
            ["training.decay_epochs: belongs to schedule step, not to cosine; leave it out"],
        ),
        (
            {"training": {"schedule": "step"}},
            ["training.decay_epochs: missing; schedule step needs it"],
        ),
        (
            {
                "compute": {
                    "distribution": "pareto",
                    "shift_ms": 5,
                    "stragglers": [{"rank": 0, "slowdown": 2}],
                }
            },
            [
                "compute.shift_ms: belongs to distribution shifted-exponential, not to pareto; leave it out",
                "compute.tail_index: missing; distribution pareto needs it",
                "compute.stragglers: belongs to mode emulated, not to real; set compute.mode or leave it out",
                "compute.distribution: belongs to mode emulated, not to real; set compute.mode or leave it out",
            ],
        ),
        (
            {"compute": {"mode": "emulated", "distribution": "shifted-exponential", "shift_ms": 60}},
            ["compute.shift_ms: 60 must be less than the mean, compute.mean_ms = 50"],
        ),
        (
            {
                "matrix": {"workers": [2, 8]},
                "compute": {
                    "mode": "emulated",
                    "stragglers": [
                        {"rank": 1, "slowdown": 2},
                        {"rank": 5, "slowdown": 2},
                        {"rank": 1, "slowdown": 3},
                    ],
                },
            },
            [
                "compute.stragglers[1].rank: 5 is no rank of 2 workers",
                "compute.stragglers[2].rank: 1 stands there more than once",
            ],
        ),
        (
            {
                "exchange": {"compression": "fp16", "topk_ratio": 0.1, "transport": "shared-memory"},
                "network": {"latency_ms": 1},
            },
            [
                "exchange.topk_ratio: belongs to compression topk, not to fp16; leave it out",
                "exchange.transport: shared-memory does not go over the injected network; choose auto or tcp",
            ],
        ),
        (
            {"exchange": {"topk_ratio": 0.6, "tls": "on", "compresion": "topk"}},
            [
                "exchange.topk_ratio: must be less than or equal to 0.5, not 0.6",
                "exchange.tls: must be a valid boolean, not 'on'",
                "exchange.compresion: unknown key; did you mean 'compression'?",
                "exchange.topk_ratio: belongs to compression topk, not to none; leave it out",
            ],
        ),
        (
            {
                "experiments": [
                    {"mode": "sync", "workers": 2, "network": {"bandwidth_mbit_per_second": 100}},
                    {"mode": "async", "workers": 2, "exchange": {"topk_ratio": 0.1}},
                ],
                "exchange": {"transport": "shared-memory"},
            },
            [
                "experiments[1].exchange.topk_ratio: belongs to compression topk, not to none; leave it out",
                "exchange.transport: shared-memory does not go over the injected network; choose auto or tcp",
            ],
        ),
        (
            {"network": {"bandwidth_mbit_per_second": 0, "latency_ms": -1}},
            [
                "network.bandwidth_mbit_per_second: must be greater than 0, not 0",
                "network.latency_ms: must be greater than or equal to 0, not -1",
            ],
        ),
        (
            {
                "matrix": {"workers": [2, 8]},
                "network": {
                    "workers": [
                        {"rank": 1, "latency_ms": 5},
                        {"rank": 2, "bandwidth_mbit_per_second": 10},
                        {"rank": 1, "latency_ms": 9},
                        {"rank": 0},
                    ]
                },
            },
            [
                "network.workers[1].rank: 2 is no rank of 2 workers",
                "network.workers[2].rank: 1 stands there more than once",
                "network.workers[3]: says nothing of the link; give it bandwidth_mbit_per_second or latency_ms",
            ],
        ),
        (
            {
                "matrix": {"workers": [2, 8]},
                "faults": {
                    "crashes": [
                        {"rank": 1, "step": 9},
                        {"rank": 2, "step": 9},
                        {"rank": 0, "step": 9, "restart_after_seconds": 0},
                        {"rank": 1, "step": 9},
                        {"rank": 1, "step": 10},
                    ]
                },
            },
            [
                "faults.crashes[1].rank: 2 is no rank of 2 workers",
                "faults.crashes[2].restart_after_seconds: training has failed by then;"
                " set on_worker_loss to continue or leave it out",
                "faults.crashes[3]: the crash of rank 1 at step 9 stands there more than once",
                "faults.crashes[4]: rank 1 stays away after an earlier crash; leave this one out",
            ],
        ),
        (
            {"faults": {"crashes": [{"rank": 1}]}, "on_worker_loss": "ignore"},
            [
                "faults.crashes[0].step: missing",
                "on_worker_loss: must be 'fail' or 'continue', not 'ignore'",
            ],
        ),
        (
            {"checkpoint": {"interval_seconds": 0, "location": "checkpoints"}},
            [
                "checkpoint.interval_seconds: must be greater than 0, not 0",
                "checkpoint.location: must match"
                " ^(/|s3://[a-z0-9.-]{3,63}(/|$))[^\\x00-\\x1f]*$, not 'checkpoints'",
            ],
        ),
        (
            {
                "matrix": {"mode": ["sync", "backup", "ksync", "kasync"]},
                "aggregation": {"k": 1, "backup_workers": 1},
                "shards": 2,
            },
            [
                f"shards: in mode {mode} one server decides which gradients count; choose 1, not 2"
                for mode in ("backup", "ksync", "kasync")
            ],
        ),
        (
            {"shards": 2, "on_worker_loss": "continue", "checkpoint": {}},
            [
                f"{key}: with several servers a loss ends the experiment; leave it out or set shards to 1"
                for key in ("on_worker_loss", "checkpoint")
            ],
        ),
        ({"shards": 9}, ["shards: must be less than or equal to 8, not 9"]),
        ({"preset": "all"}, ["preset: must be 'quick', 'recommended' or 'full', not 'all'"]),
        (
            {"matrix": {"workers": [0, 33, "4", 4.0, True]}},
            [
                "matrix.workers[0]: must be greater than or equal to 1, not 0",
                "matrix.workers[1]: must be less than or equal to 32, not 33",
                "matrix.workers[2]: must be a valid integer, not '4'",
                "matrix.workers[3]: must be a valid integer, not 4.0",
                "matrix.workers[4]: must be a valid integer, not True",
            ],
        ),
        ({"matrix": {"workers": []}}, ["matrix.workers: must not be empty"]),
        ({"training": None}, ["training: must be an object, not None"]),
        (
            {"name": "my study"},
            ["name: must match ^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$, not 'my study'"],
        ),
        ({"name": "study\n"}, ["name: must match ^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$, not 'study\\n'"]),
        ({"seeds": [1, 2, 1]}, ["seeds: 1 stands there more than once"]),
        (
            {"matrix": {"mode": ["sync", "sync"], "workers": [4, 4]}},
            [
                "matrix.mode: 'sync' stands there more than once",
                "matrix.workers: 4 stands there more than once",
            ],
        ),
        (
            {"training": {"dataset": "cifar10", "data": "/data", "model": "digits-cnn"}},
            [
                "training.model: digits-cnn does not fit cifar10; choose cifar-cnn, mlp, logistic-regression,"
                " resnet18, resnet34, mobilenet_v2"
            ],
        ),
        (
            {"training": {"model": "cifar-cnn"}},
            ["training.model: cifar-cnn does not fit digits; choose digits-cnn, mlp, logistic-regression"],
        ),
        (
            {"training": {"dataset": "synthetic", "data": "/data"}},
            ["training.data: synthetic is built in; leave it out"],
        ),
        (
            {"training": {"dataset": "mnist", "data": "/data", "augment": True}},
            ["training.augment: does not fit mnist; it is for cifar10, cifar100"],
        ),
        (
            {"training": {"dataset": "mnist", "data": "/data", "augment": 1}},
            ["training.augment: must be a valid boolean, not 1"],
        ),
        (
            {"experiments": [{"mode": "sync", "workers": 4}], "matrix": {}, "preset": "full", "seeds": [0]},
            [
                "preset: does not go with 'experiments'; give one or the other",
                "matrix: does not go with 'experiments'; give one or the other",
                "seeds: does not go with 'experiments'; give one or the other",
            ],
        ),
        (
            {"experiments": [{"mode": "sync", "workers": 4}, {"mode": "sync", "workers": 4}]},
            ["experiments: the name 'sync_4workers_seed0' is used more than once; give each its own 'name'"],
        ),
        (
            {"worker": {"cpu": 1000, "memory": 2048}},
            ["worker: cpu 1000 is no Fargate size; choose 256, 512, 1024, 2048, 4096, 8192, 16384"],
        ),
        (
            {"worker": {"cpu": 1024, "memory": 2049}},
            ["worker: memory 2049 does not go with cpu 1024; choose 2048 to 8192 in steps of 1024 (MiB)"],
        ),
        (
            {"server": {"cpu": 256, "memory": 1536}},
            ["server: memory 1536 does not go with cpu 256; choose 512, 1024, 2048 (MiB)"],
        ),
        ({"server": {"cpu": 1024}}, ["server.memory: missing"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_fix(document: object, problems: list[str]) -> None:
    assert list(refusal(document).problems) == problems


def test_all_mistakes_are_told_at_once() -> None:
    document = {
        "nmae": "x",
        "preset": "quick",
        "experiments": [{"mode": "sync", "workers": 99}],
        "training": {"dataset": "cifar10", "model": "digits-cnn", "epochs": 0},
        "worker": {"cpu": 3, "memory": 3},
    }
    message = str(refusal(document))
    lines = message.splitlines()
    assert lines[0] == "study refused: 6 problems"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  - experiments[0].workers",
        "  - training.epochs",
        "  - worker",
        "  - nmae",
        "  - preset",
        "  - training.model",
    ]


def test_a_study_has_at_most_so_many_experiments() -> None:
    assert len(planned({"seeds": list(range(MAX_EXPERIMENTS // 2))})) == MAX_EXPERIMENTS
    assert refusal({"seeds": list(range(MAX_EXPERIMENTS))}).problems == (
        "matrix: 200 experiments; a study has at most 100: split it",
    )
    one = {"mode": "sync", "workers": 1}
    assert refusal({"experiments": [one] * 101}).problems == (
        "experiments: 101 experiments; a study has at most 100: split it",
    )


def test_a_study_that_could_run_out_of_time_is_refused() -> None:
    long = {"matrix": {"workers": [1]}, "experiment_timeout_seconds": 86_400, "max_parallel_experiments": 1}
    # Training alone would fit; with the ways of its tasks it does not
    assert MAX_STUDY_SECONDS == 2 * 7 * 86_400
    (problem,) = refusal({**long, "seeds": list(range(7))}).problems
    assert "14 experiments of 86,400 s, 1 at a time, may take 1,232,760 s" in problem
    assert len(planned({**long, "seeds": list(range(6))})) == 12
    assert refusal({**long, "seeds": list(range(8))}).problems == (
        "experiment_timeout_seconds: 16 experiments of 86,400 s, 1 at a time, may take 1,408,140 s;"
        " a study has 1,209,600 s: lower it, raise max_parallel_experiments, or split the study",
    )
    assert planned({**long, "seeds": list(range(8)), "max_parallel_experiments": 2})
    # By default, the largest study fits.
    assert planned({"matrix": {"workers": [32]}, "seeds": list(range(50))})


def test_a_refusal_is_short_however_much_is_wrong() -> None:
    """A document may have 256 KiB: were time quadratic in it, or were its product made, this would not end."""
    documents: list[object] = [
        {"seeds": [0] * 60_000, "matrix": {"workers": [1] * 40_000}},
        {"seeds": list(range(40_000))},
        {"seeds": ["x"] * 60_000},
        {"x" * 200_000: 1},
        {f"key{i}": 1 for i in range(10_000)},
    ]
    for document in documents:
        assert len(str(refusal(document))) <= FAIL_CAUSE_CHARACTERS


def test_the_rest_of_a_long_refusal_is_counted() -> None:
    refused = refusal({"seeds": ["x", "y"] * 30})
    assert len(refused.problems) == 62  # and two values stand there more than once
    assert str(refused).splitlines()[-1] == "  … and 12 more"


def test_what_nests_deeper_than_repr_can_follow_is_refused_too() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert (
        refusal({"name": deep, "seeds": [deep, deep]}).problems[0].startswith("name: must be a valid string")
    )


def test_the_largest_study_fits_the_output_of_a_state() -> None:
    """What PlanStudy returns for as many experiments and workers as are accepted, with the longest names."""
    experiments = [
        {
            "name": f"{i:03d}{'n' * 61}",
            "mode": "dc-asgd",
            "workers": 19,
            "seed": 2**31 - 1,
            "aggregation": {"dc_lambda": 0.123456789},
        }
        for i in range(MAX_EXPERIMENTS)
    ]
    study = parse_study(
        {
            "experiments": experiments,
            "training": {
                "dataset": "cifar100",
                "model": "logistic-regression",
                "data": "/".ljust(256, "d"),
                "augment": True,
                "weight_decay": 0.000123456789,
                "schedule": "step",
                "decay_epochs": 12.3456789,
                "decay_factor": 0.123456789,
                "warmup_epochs": 1.23456789,
            },
            "compute": {"mode": "emulated", "distribution": "shifted-exponential", "shift_ms": 12.3456789},
        }
    )
    items = launch_items(plan(study, "s" * 80))
    assert len(json.dumps(items)) < MAX_ITEMS_BYTES < 0.96 * STATE_OUTPUT_BYTES


PARTS = (
    Study,
    Matrix,
    ExplicitExperiment,
    Training,
    Compute,
    Exchange,
    Network,
    Faults,
    Crash,
    Checkpointing,
    TaskSize,
    Aggregation,
)
KEYS = st.sampled_from(sorted({key for part in PARTS for key in part.model_fields}))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 40),
    st.floats(),
    st.text(),
    st.sampled_from(
        ["sync", "async", "quick", "full", "digits", "cifar10", "cifar-cnn", "emulated", "\ud800"]
    ),
    st.sampled_from([256, 1024, 2048, 4096, 10**400, -0.0, 1e308]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(), inner, max_size=6),
    max_leaves=20,
)
WORKERS = st.lists(st.integers(0, 34), max_size=4)
MODES = st.lists(st.sampled_from([*(mode.value for mode in Mode), "asp"]), max_size=3)
AGGREGATION = st.fixed_dictionaries(
    {},
    optional={
        "backup_workers": st.integers(0, 4),
        "staleness_bound": st.integers(-1, 4) | SCALARS,
        "k": st.integers(0, 4) | st.none(),
        "dc_lambda": st.floats(0, 2),
    },
)
EXCHANGE = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "compression": st.sampled_from(["none", "int8", "topk", "zip"]),
        "topk_ratio": st.floats(0, 0.6) | SCALARS,
        "transport": st.sampled_from(["auto", "tcp", "shared-memory"]),
        "tls": st.booleans() | st.none(),
    },
)
NETWORK = st.none() | st.fixed_dictionaries(
    {},
    optional={"bandwidth_mbit_per_second": st.floats(0, 2e6) | st.none(), "latency_ms": st.integers(-1, 3)},
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "a b", ""]) | SCALARS,
        "preset": st.sampled_from(["quick", "recommended", "full", "fast"]),
        "aggregation": AGGREGATION,
        "compute": st.fixed_dictionaries(
            {},
            optional={
                "mode": st.sampled_from(["real", "emulated"]),
                "distribution": st.sampled_from(
                    ["constant", "exponential", "shifted-exponential", "pareto", 3]
                ),
                "mean_ms": st.integers(0, 10) | SCALARS,
                "shift_ms": st.integers(0, 10) | SCALARS,
                "tail_index": st.floats(0, 3),
                "stragglers": st.lists(
                    st.fixed_dictionaries({"rank": st.integers(0, 4), "slowdown": st.floats(0, 3)}),
                    max_size=2,
                ),
            },
        ),
        "exchange": EXCHANGE,
        "network": NETWORK,
        "faults": st.fixed_dictionaries(
            {},
            optional={
                "crashes": st.lists(
                    st.fixed_dictionaries(
                        {"rank": st.integers(-1, 4), "step": st.integers(-1, 3)},
                        optional={"restart_after_seconds": st.integers(-1, 3) | SCALARS},
                    ),
                    max_size=3,
                )
                | SCALARS
            },
        ),
        "on_worker_loss": st.sampled_from(["fail", "continue", None]),
        "checkpoint": st.none()
        | st.fixed_dictionaries(
            {}, optional={"interval_seconds": st.floats(), "location": st.sampled_from(["/c", "c", None])}
        ),
        "shards": st.integers(0, 9) | SCALARS,
        "matrix": st.fixed_dictionaries({}, optional={"mode": MODES, "workers": WORKERS | st.none()}),
        "experiments": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"mode": st.sampled_from(Mode).map(str), "workers": st.integers(1, 33)},
                optional={
                    "aggregation": AGGREGATION,
                    "exchange": EXCHANGE,
                    "network": NETWORK,
                    "name": st.sampled_from(["a", "b", None]),
                    "seed": st.integers(-1, 3),
                },
            ),
            max_size=4,
        ),
        "seeds": st.lists(st.integers(-1, 60), max_size=40),
        "training": st.fixed_dictionaries(
            {},
            optional={
                "dataset": st.sampled_from(["digits", "synthetic", "cifar10", "mnist", "imagenet"]),
                "model": st.sampled_from(["digits-cnn", "cifar-cnn", "resnet18", "resnet", None]),
                "data": st.sampled_from(["/data", "s3://bucket/x", "", "data", None]),
                "augment": st.booleans() | st.none(),
                "epochs": st.integers(0, 5) | SCALARS,
                "learning_rate": st.floats(),
                "optimizer": st.sampled_from(["sgd", "adam"]),
                "schedule": st.sampled_from(["constant", "step", "cosine"]) | SCALARS,
                "decay_epochs": st.floats() | st.none(),
            },
        ),
        "worker": st.fixed_dictionaries(
            {"cpu": st.sampled_from([256, 1024, 1000]), "memory": st.sampled_from([512, 2048, 2049])}
        ),
    },
)


@given(document=ANYTHING | NEARLY)
def test_any_document_is_refused_with_reasons_or_can_be_planned(document: object) -> None:
    try:
        study = parse_study(document)
    except StudyRefused as refused:
        told = refused
        study = None
    if study is None:
        assert all(told.problems)
        assert told.problems
        assert len(str(told)) <= FAIL_CAUSE_CHARACTERS
        return
    experiments = plan(study, "study-1")
    assert len({experiment.name for experiment in experiments}) == len(experiments) == study.experiment_count
    for experiment in experiments:
        assert 1 <= experiment.workers <= MAX_WORKERS
        assert (experiment.aggregation.value(experiment.mode) is None) == (experiment.mode not in KEY_OF)
        assert experiment.training.model in MODELS_FOR[experiment.training.dataset]
        assert not (experiment.exchange.transport == "shared-memory" and experiment.network.injected)
        ranks = {crash.rank for crash in experiment.faults.crashes}
        assert ranks <= set(range(experiment.workers))
        TaskEnvironment.from_environ(shared_environment(experiment).to_environ())
        assert study_of_group(experiment.task_group) == "study-1"
        json.dumps(launch_item(experiment), allow_nan=False)


@given(
    modes=st.lists(st.sampled_from(["sync", "async"]), min_size=1, unique=True),
    workers=st.lists(st.integers(1, MAX_WORKERS), min_size=1, max_size=5, unique=True),
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5, unique=True),
)
def test_a_matrix_is_planned_in_full(modes: list[str], workers: list[int], seeds: list[int]) -> None:
    experiments = planned({"matrix": {"mode": modes, "workers": workers}, "seeds": seeds})
    assert [(e.workers, e.seed, e.mode) for e in experiments] == [
        (count, seed, mode) for count in workers for seed in seeds for mode in modes
    ]


@pytest.mark.parametrize("group", ["family:lockstep", "", "/", "study/", "/experiment"])
def test_a_task_group_of_others_belongs_to_no_study(group: str) -> None:
    assert study_of_group(group) is None
    assert study_of_group(task_group("study-1", "sync_1worker")) == "study-1"
