"""The environment of a task: what the controller writes is what the runtime reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.aggregation import KEY_OF, Mode
from contract.catalogue import Dataset, ModelName
from contract.compute import Straggler
from contract.errors import TaskEnvironmentRefused
from contract.plan import plan
from contract.study import parse_study
from contract.task import SERVER_PORT, TaskEnvironment, shared_environment

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
ENVIRONMENTS = st.builds(
    TaskEnvironment,
    study_id=WORDS,
    experiment_name=WORDS,
    seed=st.integers(0, 2**31 - 1),
    server_mode=st.sampled_from(sorted(set(Mode) - KEY_OF.keys())),
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
    experiment_timeout_seconds=st.integers(1, 86400),
    parameter_server_address=WORDS,
    worker_rank=st.integers(0, 31),
    table_name=WORDS,
)


@given(environment=ENVIRONMENTS)
def test_an_environment_survives_its_variables(environment: TaskEnvironment) -> None:
    variables = environment.to_environ()
    assert variables.keys() == {
        name.upper() for name in TaskEnvironment.model_fields if getattr(environment, name) is not None
    }
    assert TaskEnvironment.from_environ({"PATH": "/bin", "worker_rank": "7", **variables}) == environment


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
