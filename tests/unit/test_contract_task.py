"""The environment of a task: what the controller writes is what the runtime reads."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.aggregation import KEY_OF, ONE_SERVER_MODES, Mode
from contract.catalogue import Dataset, ModelName
from contract.checkpoint import Checkpointing
from contract.compute import Straggler
from contract.errors import StudyRefused, TaskEnvironmentRefused
from contract.exchange import Exchange
from contract.faults import MAX_CRASHES, Crash
from contract.network import Network, WorkerNetwork
from contract.plan import plan
from contract.study import parse_study
from contract.task import SERVER_PORT, TaskEnvironment, shared_environment
from lambdas.plan_study.launch import launch_items

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
ENVIRONMENTS = st.builds(
    TaskEnvironment,
    study_id=WORDS,
    experiment_name=WORDS,
    seed=st.integers(0, 2**31 - 1),
    server_mode=st.sampled_from(sorted(set(Mode) - KEY_OF.keys() - ONE_SERVER_MODES)),
    total_workers_expected=st.integers(1, 32),
    server_port=st.integers(0, 65535),
    dataset=st.sampled_from(Dataset),
    data_directory=WORDS,
    model=st.sampled_from(ModelName),
    augment=st.booleans(),
    epochs=st.integers(1, 1000),
    batch_size=st.integers(1, 65536),
    learning_rate=POSITIVE,
    optimizer=st.sampled_from(["sgd", "adam"]),
    momentum=st.floats(0, 1, exclude_max=True),
    weight_decay=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine"]),
    warmup_epochs=st.floats(0, 10),
    compute_mode=st.just("emulated"),
    compute_distribution=st.sampled_from(["exponential", "constant"]),
    compute_mean_ms=POSITIVE,
    compute_stragglers=st.lists(
        st.builds(Straggler, rank=st.integers(0, 31), slowdown=st.floats(1, 1000)), max_size=2
    ),
    compression=st.just("topk"),
    topk_ratio=st.floats(0, 0.5, exclude_min=True),
    transport=st.sampled_from(["auto", "tcp"]),
    tls=st.none() | st.booleans(),
    network_bandwidth_mbit_per_second=st.none() | POSITIVE,
    network_latency_ms=st.floats(0, 10_000),
    network_workers=st.lists(
        st.builds(
            WorkerNetwork,
            rank=st.just(0),
            bandwidth_mbit_per_second=st.none() | st.floats(0.1, 1_000_000),
            latency_ms=st.floats(0, 10_000),
        ),
        max_size=1,
    ),
    faults_crashes=st.lists(
        st.builds(
            Crash, rank=st.just(0), step=st.integers(0, 10**9), restart_after_seconds=st.floats(0, 3600)
        ),
        max_size=3,
        unique_by=lambda crash: crash.step,
    ),
    on_worker_loss=st.just("continue"),
    checkpoint_seconds=st.none() | POSITIVE,
    checkpoint_location=WORDS,
    shards=st.just(1),
    shard_index=st.just(0),
    experiment_timeout_seconds=st.integers(1, 86400),
    parameter_server_address=WORDS,
    worker_rank=st.integers(0, 31),
    worker_attempt=st.integers(0, 999),
    table_name=WORDS,
)


@given(environment=ENVIRONMENTS)
def test_an_environment_survives_its_variables(environment: TaskEnvironment) -> None:
    variables = environment.to_environ()
    assert variables.keys() == {
        name.upper() for name in TaskEnvironment.model_fields if getattr(environment, name) is not None
    }
    assert TaskEnvironment.from_environ({"PATH": "/bin", "worker_rank": "7", **variables}) == environment


def test_a_shard_survives_its_variables() -> None:
    environment = TaskEnvironment(shards=8, shard_index=7)
    assert TaskEnvironment.from_environ(environment.to_environ()) == environment


def test_the_names_are_those_of_the_contract() -> None:
    """The words that ASL, Dockerfile and users of the image rely on."""
    assert {
        "SERVER_MODE",
        "TOTAL_WORKERS_EXPECTED",
        "SERVER_PORT",
        "PARAMETER_SERVER_ADDRESS",
        "WORKER_RANK",
        "STUDY_ID",
        "EXPERIMENT_NAME",
    } <= {name.upper() for name in TaskEnvironment.model_fields}


def test_an_experiment_says_everything_that_its_tasks_share() -> None:
    study = parse_study(
        {
            "experiments": [{"name": "one", "mode": "async", "workers": 3, "seed": 9}],
            "training": {
                "dataset": "cifar10",
                "model": "resnet18",
                "data": "s3://bucket/prefix",
                "augment": True,
                "epochs": 2,
                "batch_size": 8,
                "learning_rate": 1e-05,
                "momentum": 0.5,
            },
            "compute": {"mode": "emulated", "distribution": "constant", "mean_ms": 12.5},
            "experiment_timeout_seconds": 60,
        }
    )
    (experiment,) = plan(study, "study-1")
    assert shared_environment(experiment).to_environ() == {
        "STUDY_ID": "study-1",
        "EXPERIMENT_NAME": "one",
        "SEED": "9",
        "SERVER_MODE": "async",
        "TOTAL_WORKERS_EXPECTED": "3",
        "SERVER_PORT": str(SERVER_PORT),
        "DATASET": "cifar10",
        "DATA_DIRECTORY": "s3://bucket/prefix",
        "MODEL": "resnet18",
        "AUGMENT": "True",
        "EPOCHS": "2",
        "BATCH_SIZE": "8",
        "LEARNING_RATE": "1e-05",
        "MOMENTUM": "0.5",
        "COMPUTE_MODE": "emulated",
        "COMPUTE_DISTRIBUTION": "constant",
        "COMPUTE_MEAN_MS": "12.5",
        "EXPERIMENT_TIMEOUT_SECONDS": "60",
    }


def test_what_few_experiments_say_is_in_the_environment_where_it_is_said() -> None:
    study = parse_study(
        {
            "experiments": [{"mode": "ksync", "workers": 3, "aggregation": {"k": 2}}],
            "training": {
                "optimizer": "adam",
                "learning_rate": 0.001,
                "weight_decay": 0.01,
                "schedule": "step",
                "decay_epochs": 1.5,
                "decay_factor": 0.5,
                "warmup_epochs": 0.25,
            },
            "compute": {
                "mode": "emulated",
                "distribution": "pareto",
                "tail_index": 2.5,
                "stragglers": [{"rank": 2, "slowdown": 10}],
            },
        }
    )
    (experiment,) = plan(study, "study-1")
    environ = shared_environment(experiment).to_environ()
    assert (
        environ.items()
        >= {
            "AGGREGATION_K": "2",
            "OPTIMIZER": "adam",
            "WEIGHT_DECAY": "0.01",
            "SCHEDULE": "step",
            "DECAY_EPOCHS": "1.5",
            "DECAY_FACTOR": "0.5",
            "WARMUP_EPOCHS": "0.25",
            "COMPUTE_TAIL_INDEX": "2.5",
            "COMPUTE_STRAGGLERS": '[{"rank": 2, "slowdown": 10.0}]',
        }.items()
    )
    read = TaskEnvironment.from_environ(environ)
    assert (read.aggregation, read.compute) == (experiment.aggregation, experiment.compute)


def test_how_things_travel_and_what_goes_wrong_is_in_the_environment_where_it_is_said() -> None:
    study = parse_study(
        {
            "experiments": [
                {"name": "one", "mode": "async", "workers": 3},
                {"name": "plain", "mode": "sync", "workers": 3, "exchange": {}, "network": {}},
            ],
            "exchange": {"compression": "topk", "topk_ratio": 0.1, "transport": "tcp", "tls": False},
            "network": {
                "bandwidth_mbit_per_second": 100,
                "latency_ms": 2.5,
                "workers": [{"rank": 2, "bandwidth_mbit_per_second": 10}],
            },
            "faults": {
                "crashes": [{"rank": 1, "step": 20, "restart_after_seconds": 1}, {"rank": 2, "step": 7}]
            },
            "on_worker_loss": "continue",
            "checkpoint": {"interval_seconds": 5, "location": "s3://bucket/checkpoints"},
        }
    )
    (experiment, plain) = plan(study, "study-1")
    environ = shared_environment(experiment).to_environ()
    travel = {
        "COMPRESSION": "topk",
        "TOPK_RATIO": "0.1",
        "TRANSPORT": "tcp",
        "TLS": "False",
        "NETWORK_BANDWIDTH_MBIT_PER_SECOND": "100.0",
        "NETWORK_LATENCY_MS": "2.5",
        "NETWORK_WORKERS": '[{"rank": 2, "bandwidth_mbit_per_second": 10.0}]',
    }
    others = {
        "FAULTS_CRASHES": '[{"rank": 1, "step": 20, "restart_after_seconds": 1.0}, {"rank": 2, "step": 7}]',
        "ON_WORKER_LOSS": "continue",
        "CHECKPOINT_SECONDS": "5.0",
        "CHECKPOINT_LOCATION": "s3://bucket/checkpoints",
    }
    unusual = dict(
        environ.items() - shared_environment(plan(parse_study({}), "study-1")[0]).to_environ().items()
    )
    assert unusual.items() >= (travel | others).items()
    read = TaskEnvironment.from_environ(environ)
    assert (read.exchange, read.network, read.faults) == (
        experiment.exchange,
        experiment.network,
        experiment.faults,
    )
    # A section of an experiment's own takes the place of the whole one of the study
    assert (plain.exchange, plain.network, plain.faults) == (Exchange(), Network(), experiment.faults)
    said = shared_environment(plain).to_environ()
    assert not travel.keys() & said.keys()
    assert said.items() >= others.items()


def test_checkpoints_may_lie_where_the_deployment_keeps_them() -> None:
    (experiment, *_) = plan(parse_study({"checkpoint": {}}), "study-1")
    assert experiment.checkpoint == Checkpointing(interval_seconds=30, location=None)
    environ = shared_environment(experiment).to_environ()
    assert environ["CHECKPOINT_SECONDS"] == "30.0"
    assert "CHECKPOINT_LOCATION" not in environ
    (experiment, *_) = plan(parse_study({}), "study-1")
    read = TaskEnvironment.from_environ(
        {**shared_environment(experiment).to_environ(), "CHECKPOINT_LOCATION": "/c"}
    )
    assert (read.checkpoint_seconds, read.checkpoint_location) == (None, "/c")


def test_defaults_are_not_in_the_environment() -> None:
    """ECS takes 8,192 characters: what a study does not say, its tasks are not told."""
    (experiment, *_) = plan(parse_study({}), "study-1")
    spelled_out = parse_study(
        {
            "exchange": {"compression": "none", "transport": "auto", "tls": None},
            "network": {"bandwidth_mbit_per_second": None, "latency_ms": 0},
            "faults": {"crashes": []},
            "on_worker_loss": "fail",
            "checkpoint": None,
            "shards": 1,
        }
    )
    (same, *_) = plan(spelled_out, "study-1")
    assert shared_environment(same).to_environ() == shared_environment(experiment).to_environ()


def test_what_a_task_is_told_at_most_stays_below_what_ecs_takes() -> None:
    """Source: Amazon ECS API Reference, TaskOverride: 8192 characters of overrides, as JSON."""
    study = parse_study(
        {
            "experiments": [{"name": "n" * 64, "mode": "dc-asgd", "workers": 32, "seed": 2**31 - 1}],
            "aggregation": {"dc_lambda": 0.123456789},
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
            "compute": {
                "mode": "emulated",
                "distribution": "shifted-exponential",
                "shift_ms": 12.3456789,
                "stragglers": [{"rank": rank, "slowdown": 123.456789} for rank in range(32)],
            },
            "exchange": {"compression": "topk", "topk_ratio": 0.123456789, "transport": "tcp", "tls": False},
            "network": {"bandwidth_mbit_per_second": 123.456789, "latency_ms": 1.23456789},
            "faults": {
                "crashes": [
                    {"rank": rank, "step": 10**9, "restart_after_seconds": 123.456789}
                    for rank in range(MAX_CRASHES)
                ]
            },
            "on_worker_loss": "continue",
            "checkpoint": {"interval_seconds": 12.3456789, "location": "/".ljust(256, "c")},
        }
    )
    experiments = plan(study, "s" * 80)
    assert launch_items(experiments)
    # With a link of each worker's own as well, it does not
    links = [
        WorkerNetwork(rank=rank, bandwidth_mbit_per_second=123.45678901234567, latency_ms=1.2345678901234567)
        for rank in range(32)
    ]
    network = experiments[0].network.model_copy(update={"workers": links})
    with pytest.raises(StudyRefused) as refused:
        launch_items([experiments[0].model_copy(update={"network": network})])
    (problem,) = refused.value.problems
    # A plan without an execution says the same, whatever it is called
    with pytest.raises(StudyRefused, match=re.escape(problem)):
        launch_items([experiments[0].model_copy(update={"network": network, "study_id": "plan"})])
    assert re.fullmatch(
        "experiments: a task of " + "n" * 64 + r" is told 1\d,\d\d\d characters, and ECS takes at most 8,192:"
        r" shorten compute.stragglers, network.workers or faults.crashes",
        problem,
    )


def test_the_token_is_no_part_of_an_environment_that_may_be_printed() -> None:
    environment = TaskEnvironment.from_environ({"EXPERIMENT_TOKEN": "s3cret"})
    assert "s3cret" not in repr(environment)
    assert environment.to_environ() == {}


def test_an_experiment_without_a_model_was_not_planned() -> None:
    (experiment, _) = plan(parse_study({}), "study-1")
    unplanned = experiment.model_copy(update={"training": parse_study({}).training})
    with pytest.raises(ValueError, match="names its model"):
        shared_environment(unplanned)


@pytest.mark.parametrize(
    ("variables", "problems"),
    [
        ({"SERVER_MODE": "ssp"}, ["AGGREGATION_STALENESS_BOUND: missing; mode ssp needs it"]),
        (
            {"SERVER_MODE": "ksync", "AGGREGATION_K": "3", "TOTAL_WORKERS_EXPECTED": "2"},
            ["AGGREGATION_K: 3 gradients cannot come from 2 workers of mode ksync"],
        ),
        (
            {"SCHEDULE": "step", "COMPUTE_DISTRIBUTION": "pareto", "COMPUTE_SHIFT_MS": "3"},
            [
                "COMPUTE_SHIFT_MS: belongs to distribution shifted-exponential, not to pareto; leave it out",
                "COMPUTE_TAIL_INDEX: missing; distribution pareto needs it",
                "DECAY_EPOCHS: missing; schedule step needs it",
            ],
        ),
        (
            {"COMPUTE_STRAGGLERS": "[{"},
            ["COMPUTE_STRAGGLERS: must be JSON, not '[{'"],
        ),
        (
            {
                "TOPK_RATIO": "0.1",
                "TRANSPORT": "shared-memory",
                "NETWORK_LATENCY_MS": "1",
                "FAULTS_CRASHES": '[{"rank": 1, "step": 0, "restart_after_seconds": 2}]',
                "SERVER_MODE": "kasync",
                "AGGREGATION_K": "1",
                "SHARDS": "2",
                "SHARD_INDEX": "2",
            },
            [
                "TOPK_RATIO: belongs to compression topk, not to none; leave it out",
                "TRANSPORT: shared-memory does not go over the injected network; choose auto or tcp",
                "FAULTS_CRASHES[0].rank: 1 is no rank of 1 workers",
                "FAULTS_CRASHES[0].restart_after_seconds: training has failed by then;"
                " set on_worker_loss to continue or leave it out",
                "SHARDS: in mode kasync one server decides which gradients count; choose 1, not 2",
                "SHARD_INDEX: 2 is none of 2 shards",
            ],
        ),
        (
            {"COMPRESSION": "zip", "FAULTS_CRASHES": "{", "CHECKPOINT_SECONDS": "0", "WORKER_ATTEMPT": "-1"},
            [
                "COMPRESSION: must be 'none', 'fp16', 'bf16', 'int8' or 'topk', not 'zip'",
                "FAULTS_CRASHES: must be JSON, not '{'",
                "CHECKPOINT_SECONDS: must be greater than 0, not '0'",
                "WORKER_ATTEMPT: must be greater than or equal to 0, not '-1'",
            ],
        ),
        (
            {"TOTAL_WORKERS_EXPECTED": "0", "WORKER_RANK": "32"},
            [
                "TOTAL_WORKERS_EXPECTED: must be greater than or equal to 1, not '0'",
                "WORKER_RANK: must be less than 32, not '32'",
            ],
        ),
        ({"LEARNING_RATE": "nan"}, ["LEARNING_RATE: must be a finite number, not 'nan'"]),
        ({"LEARNING_RATE": "inf"}, ["LEARNING_RATE: must be a finite number, not 'inf'"]),
        (
            {"EPOCHS": ""},
            ["EPOCHS: must be a valid integer, unable to parse string as an integer, not ''"],
        ),
    ],
)
def test_every_wrong_variable_is_named(variables: dict[str, str], problems: list[str]) -> None:
    with pytest.raises(TaskEnvironmentRefused) as refused:
        TaskEnvironment.from_environ(variables)
    assert list(refused.value.problems) == problems


@given(
    variables=st.dictionaries(
        st.sampled_from([name.upper() for name in TaskEnvironment.model_fields]), st.text(), max_size=5
    )
)
def test_any_variables_are_refused_or_read(variables: dict[str, str]) -> None:
    try:
        environment = TaskEnvironment.from_environ(variables)
    except TaskEnvironmentRefused:
        return
    assert TaskEnvironment.from_environ(environment.to_environ()) == environment
