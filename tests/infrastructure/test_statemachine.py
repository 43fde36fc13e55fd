"""The state machine: every state is reached, every way ends, and it speaks the contract's words."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from jsonata import Jsonata  # type: ignore[import-untyped]  # it has no types

import statemachine
from contract.catalogue import Dataset
from contract.cost import STUDY_REQUESTS
from contract.document import MAX_SHARDS
from contract.limits import AROUND_SECONDS, JUDGING_SECONDS, PREPARING_SECONDS
from contract.plan import Experiment, plan, preparation_group, study_of_group
from contract.preparation import Preparation
from contract.study import MAX_STUDY_SECONDS, Mode, parse_study
from contract.table import (
    DATASET_CAUSE,
    DATASET_READY,
    DATASET_SORT,
    DATASET_STATUS,
    EXPIRY,
    PARTITION_KEY,
    SORT_KEY,
    dataset_partition,
    experiment_sort,
    rendezvous_sort,
    study_partition,
)
from contract.task import TaskEnvironment
from lambdas.plan_study.launch import MACHINE_CHARACTERS, RESTARTS, VAIN_STARTS, launch_item, launch_items
from runtime import liveness
from tests.infrastructure.asl import (
    SUBSTITUTIONS,
    Machine,
    ends,
    evaluated,
    expressions,
    followers,
    machines,
    states,
)
from tests.infrastructure.conftest import REPOSITORY, Assembly

OTHERS_VARIABLES = {"AWS_DEFAULT_REGION", "OMP_NUM_THREADS"}
"""What a task is told that is not for our own code: the AWS SDK's region, the number of torch's threads."""


@pytest.fixture(scope="module")
def rendered() -> Machine:
    loaded: Machine = json.loads(statemachine.render(SUBSTITUTIONS))
    return loaded


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    document = {
        "experiments": [{"name": "one", "mode": "async", "workers": 3, "seed": 5}],
        "server": {"cpu": 2048, "memory": 4096},
        "worker": {"cpu": 256, "memory": 512},
    }
    return plan(parse_study(document), "study-1")[0]


@pytest.fixture(scope="module")
def item(experiment: Experiment) -> dict[str, Any]:
    return launch_item(experiment)


def test_it_is_json_with_its_placeholders_and_without(machine: Machine, rendered: Machine) -> None:
    assert machine["QueryLanguage"] == rendered["QueryLanguage"] == "JSONata"
    assert "${" in json.dumps(machine)
    assert "${" not in json.dumps(rendered)


def test_every_placeholder_stands_inside_quotes() -> None:
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", statemachine.definition())
    assert "$" not in outside
    assert re.findall(r"\$\{(?!\w+\})", statemachine.definition()) == []


def test_the_stack_substitutes_every_placeholder_and_no_other(assembly: Assembly) -> None:
    _, properties = assembly.only("AWS::StepFunctions::StateMachine")
    assert properties["DefinitionSubstitutions"].keys() == statemachine.placeholders()
    assert properties["DefinitionString"] == statemachine.definition()


def test_a_placeholder_that_is_not_given_is_an_error() -> None:
    with pytest.raises(KeyError, match="TableName"):
        statemachine.render(dict.fromkeys(statemachine.placeholders() - {"TableName"}, ""))


def test_every_state_is_reached_and_every_way_ends(machine: Machine) -> None:
    for name, inner in machines(machine):
        graph = {state_name: followers(state) for state_name, state in inner["States"].items()}
        assert set().union(*graph.values()) <= graph.keys(), name
        reached, new = set(), {inner["StartAt"]}
        while new:
            reached |= new
            new = set().union(*(graph[state] for state in new)) - reached
        assert reached == graph.keys(), name
        ending = {state_name for state_name, state in inner["States"].items() if ends(state)}
        assert ending
        while more := {state for state, after in graph.items() if after & ending} - ending:
            ending |= more
        assert ending == graph.keys(), name
        for state_name, state in inner["States"].items():
            assert ends(state) != bool(followers(state)) or "Catch" in state, state_name


def test_every_error_is_caught_where_it_happens_or_around(machine: Machine) -> None:
    """What runs inside the Parallel of one experiment is caught by it; every other state catches its own.

    ConcludeStudy fails the execution where the study has failed.
    """

    def uncaught(inner: Machine) -> Iterator[str]:
        for name, state in inner["States"].items():
            if state["Type"] not in {"Task", "Map", "Parallel"}:
                continue
            if not any(catcher["ErrorEquals"] == ["States.ALL"] for catcher in state.get("Catch", [])):
                yield name
            if state["Type"] == "Map":
                yield from uncaught(state["ItemProcessor"])

    assert list(uncaught(machine)) == ["ConcludeStudy"]
    parallel = states(machine)["TrainTogether"]
    assert len(parallel["Branches"]) == 2


def test_the_estimate_counts_every_function_that_a_study_calls_once(machine: Machine) -> None:
    called = [
        name for name, state in machine["States"].items() if "lambda:invoke" in state.get("Resource", "")
    ]
    assert len(called) == STUDY_REQUESTS


def test_no_task_waits_without_an_end(
    machine: Machine, rendered: Machine, item: dict[str, Any], assembly: Assembly
) -> None:
    """Map and Parallel states end with the tasks in them; what bounds the whole is the machine's own limit."""
    assert machine["TimeoutSeconds"] == MAX_STUDY_SECONDS
    tasks = {name: state for name, state in states(rendered).items() if state["Type"] == "Task"}
    assert len(tasks) >= 9
    limits = {name: evaluated(state["TimeoutSeconds"], experiment=item) for name, state in tasks.items()}
    assert all(isinstance(seconds, int) and seconds > 0 for seconds in limits.values())
    timeouts = {name: limits[name] for name in ("RunServer", "RunWorker", "AwaitServer")}
    assert timeouts == {
        "RunServer": item["timeouts"]["server"],
        "RunWorker": item["timeouts"]["worker"],
        "AwaitServer": item["timeouts"]["rendezvous"],
    }
    functions = assembly.functions()
    called = {
        name: snake_case(name) for name, state in tasks.items() if state["Resource"].endswith("lambda:invoke")
    }
    assert set(called.values()) <= functions.keys()
    for name, function in called.items():
        # The function's own end is the one that is told: the state's is for what Lambda does not answer.
        assert 0 < limits[name] - functions[function]["Timeout"] <= 60, name
    # A download: of the largest data set in an hour, over a line of half a Mbit/s.
    assert limits["PrepareDataset"] == PREPARING_SECONDS == 3600
    assert limits["JudgeExperiment"] == JUDGING_SECONDS
    assert sum(limits[name] for name in called.keys() - {"JudgeExperiment"}) == AROUND_SECONDS
    others = limits.keys() - timeouts.keys() - called.keys() - {"PrepareDataset"}
    assert {limits[name] for name in others} == {60}


def test_a_server_waits_for_its_workers_longer_than_calls_for_them_are_tried_again(
    rendered: Machine, item: dict[str, Any]
) -> None:
    found = states(rendered)
    throttled = sum(
        min(
            retrier["IntervalSeconds"] * retrier["BackoffRate"] ** i, retrier.get("MaxDelaySeconds", math.inf)
        )
        for retrier in found["RunWorker"]["Retry"]
        for i in range(retrier["MaxAttempts"])
    )
    assert throttled > 300
    assert throttled < liveness.JOIN_SECONDS / 2
    assert evaluated(found["AwaitServer"]["TimeoutSeconds"], experiment=item) == liveness.JOIN_SECONDS


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def test_what_is_tried_again_is_transient_and_spread_out(machine: Machine) -> None:
    """Every error is named: a wildcard would repeat bugs. Full jitter keeps those that failed together apart."""
    retriers = [retrier for state in states(machine).values() for retrier in state.get("Retry", [])]
    assert len(retriers) >= 10
    for retrier in retriers:
        assert not {error for error in retrier["ErrorEquals"] if error.startswith("States.")}
        assert retrier["JitterStrategy"] == "FULL"
        assert retrier["BackoffRate"] > 1
        assert 0 < retrier["MaxAttempts"] <= 8


def test_a_study_ends_well_only_when_it_was_concluded(machine: Machine) -> None:
    top = machine["States"]
    assert {name for name, state in top.items() if state["Type"] == "Succeed"} == {"StudyCompleted"}
    leads = {name for name, state in top.items() if "StudyCompleted" in followers(state)}
    assert leads == {"DecideEnd"}
    assert {name for name, state in top.items() if "DecideEnd" in followers(state)} == {"ConcludeStudy"}


@pytest.mark.parametrize(
    ("published", "present", "again"),
    [(0, None, False), (0, 0, False), (0, 1, True), (1, 1, False), (1, 2, True)],
)
def test_a_redriven_study_is_concluded_once_for_each_run(
    rendered: Machine, published: int, present: int | None, again: bool
) -> None:
    """A redriven execution comes to ConcludeStudy with the input of the run that failed.

    What AWS tells of redrives is there only once an execution was redriven.
    """
    top, execution = rendered["States"], {"Name": "study-1"}
    context = {"Execution": {**execution, **({} if present is None else {"RedriveCount": present})}}
    given = {"status": "FAILED", "cause": "why", "redrives": published}
    payload = evaluated(
        top["ConcludeStudy"]["Arguments"]["Payload"], states={"input": given, "context": context}
    )
    assert payload == {"study_id": "study-1", "status": "FAILED", "cause": "why", "again": again}
    (choice,) = top["DecideEnd"]["Choices"]
    met = evaluated(choice["Condition"], states={"input": {"again": again}})
    assert (choice["Next"] if met else top["DecideEnd"]["Default"]) == (
        "PlanStudy" if again else "StudyCompleted"
    )
    output = evaluated(
        top["PublishReport"]["Output"],
        states={"result": {"Payload": {"status": "FAILED"}}, "context": context},
    )
    assert output == {"status": "FAILED", "redrives": present or 0}


def test_an_experiment_sees_nothing_but_its_item(machine: Machine) -> None:
    """A child execution has neither the variables of its parent nor its name.

    Source: Step Functions Developer Guide, passing data with variables; Map state in Distributed mode.
    """
    experiments = machine["States"]["RunExperiments"]
    assert experiments["ItemProcessor"]["ProcessorConfig"] == {
        "Mode": "DISTRIBUTED",
        "ExecutionType": "STANDARD",
    }
    assert experiments["ToleratedFailurePercentage"] == 100
    inside = "\n".join(expressions(experiments["ItemProcessor"]))
    assert "context.Execution" not in inside
    variables = set(re.findall(r"\$([a-z_]\w*)(?![\w(])", inside))
    assert variables == {"states", "experiment"}
    assigned = {name for state in states(machine).values() for name in state.get("Assign", {})}
    assert assigned == {"experiment"}


def test_every_expression_can_be_parsed(rendered: Machine) -> None:
    found = list(expressions(rendered))
    assert len(found) > 30
    for expression in found:
        Jsonata(expression)


def test_the_rows_that_it_writes_and_reads_are_the_contracts(
    rendered: Machine, experiment: Experiment, item: dict[str, Any]
) -> None:
    partition = {PARTITION_KEY: {"S": study_partition(experiment.study_id)}}
    rendezvous = {**partition, SORT_KEY: {"S": rendezvous_sort(experiment.name, 1)}}
    variables = {
        "states": {"input": {**item, "shard": 1}, "context": {"Task": {"Token": "token-1"}}},
        "experiment": item,
    }
    found = states(rendered)
    mark = evaluated(found["MarkRunning"]["Arguments"], **variables)
    assert mark["Key"] == {**partition, SORT_KEY: {"S": experiment_sort(experiment.name)}}
    assert mark["ExpressionAttributeValues"].keys() == {":planned", ":running", ":now"}
    put = evaluated(found["AwaitServer"]["Arguments"], **variables)["Item"]
    expiry = put.pop(EXPIRY)
    assert put == {**rendezvous, "task_token": {"S": "token-1"}}
    assert re.fullmatch(r"\d{10}", expiry["N"])
    assert evaluated(found["FindRendezvous"]["Arguments"], **variables)["Key"] == rendezvous


def test_tasks_are_started_with_the_environment_that_the_runtime_reads(
    rendered: Machine, experiment: Experiment, item: dict[str, Any]
) -> None:
    inputs = {"server": {"shard": 0}, "worker": {"rank": 2, "attempt": 0, "address": "10.73.0.9:8000"}}
    read = {}
    for state, role in (("RunServer", "server"), ("RunWorker", "worker")):
        variables = {"states": {"input": inputs[role]}, "experiment": item}
        arguments = evaluated(states(rendered)[state]["Arguments"], **variables)
        assert arguments["Group"] == experiment.task_group
        tags = {tag["Key"]: tag["Value"] for tag in arguments["Tags"]}
        assert tags == {"lockstep:study": "study-1", "lockstep:experiment": "one"}
        assert "LaunchType" not in arguments  # ECS takes one of the two
        capacity = item["worker"]["capacity"] if role == "worker" else "FARGATE"
        assert arguments["CapacityProviderStrategy"] == [{"CapacityProvider": capacity, "Weight": 1}]
        assert subnets(arguments) == ["subnet-1"]
        overrides = arguments["Overrides"]
        assert (overrides["Cpu"], overrides["Memory"]) == (item[role]["cpu"], item[role]["memory"])
        (container,) = overrides["ContainerOverrides"]
        assert container["Name"] == role
        names = [pair["Name"] for pair in container["Environment"]]
        assert len(set(names)) == len(names)
        assert set(names) - OTHERS_VARIABLES <= {name.upper() for name in TaskEnvironment.model_fields}
        assert all(isinstance(pair["Value"], str) for pair in container["Environment"])
        read[role] = TaskEnvironment.from_environ({p["Name"]: p["Value"] for p in container["Environment"]})
    server, worker = read["server"], read["worker"]
    assert server.table_name == "<TableName>"
    assert (worker.worker_rank, worker.parameter_server_address) == (2, "10.73.0.9:8000")
    shared = {
        "study_id",
        "experiment_name",
        "seed",
        "server_mode",
        "total_workers_expected",
        "model",
        "epochs",
    }
    assert server.model_dump(include=shared) == worker.model_dump(include=shared)
    assert (server.server_mode, server.total_workers_expected, server.seed) == (Mode.ASYNC, 3, 5)


def test_what_the_state_machine_adds_to_a_task_is_what_plans_reckon_with(item: dict[str, Any]) -> None:
    """With names as long as AWS takes them, and as many servers as there can be."""
    longest = {**SUBSTITUTIONS, "TableName": "t" * 255, "Region": "ap-northeast-1"}
    found = states(json.loads(statemachine.render(longest)))
    address = ",".join(["255.255.255.255:8000"] * MAX_SHARDS)
    inputs = {"server": {"shard": 7}, "worker": {"rank": 31, "attempt": 999, "address": address}}
    for name, role in (("RunServer", "server"), ("RunWorker", "worker")):
        variables = {"states": {"input": inputs[role]}, "experiment": item}
        overrides = evaluated(found[name]["Arguments"]["Overrides"], **variables)
        told = len(json.dumps(item["environment"], separators=(",", ":")))
        assert len(json.dumps(overrides, separators=(",", ":"))) - told <= MACHINE_CHARACTERS


def subnets(arguments: dict[str, Any]) -> list[str]:
    found: list[str] = arguments["NetworkConfiguration"]["AwsvpcConfiguration"]["Subnets"]
    return found


@pytest.mark.parametrize(("listed", "used"), [("a,b", "aabbaabb"), ("a", "aaaaaaaa"), ("a,b,c", "aabbccaa")])
def test_all_tasks_of_an_experiment_are_in_one_zone_with_those_it_is_compared_with(
    listed: str, used: str
) -> None:
    """Modes side by side with the same workers and seed; those with others go to the next zone."""
    document = {"matrix": {"workers": [1, 2]}, "seeds": [0, 1]}
    items = launch_items(plan(parse_study(document), "study-1"))
    found = states(json.loads(statemachine.render({**SUBSTITUTIONS, "Subnets": listed})))
    inputs = {
        "RunServer": {"shard": 0},
        "RunWorker": {"rank": 0, "attempt": 0, "address": "10.73.0.9:8000"},
    }
    for name, given in inputs.items():
        told = [
            evaluated(found[name]["Arguments"], states={"input": given}, experiment=item) for item in items
        ]
        assert [subnets(arguments) for arguments in told] == [[subnet] for subnet in used]


def test_the_task_that_prepares_may_be_in_any_zone(rendered: Machine) -> None:
    told = {"input": {"dataset": DATASET}, "context": STUDY_1}
    arguments = evaluated(rendered["States"]["PrepareDataset"]["Arguments"], states=told)
    assert subnets(arguments) == ["subnet-1", "subnet-2"]


@pytest.mark.parametrize(("state", "retries"), [({"RetryCount": 0}, 0), ({"RetryCount": 3}, 3), ({}, 0)])
@pytest.mark.parametrize("losses", [0, 2])
def test_a_worker_is_told_how_many_times_it_was_started_before(
    rendered: Machine, item: dict[str, Any], state: dict[str, int], retries: int, losses: int
) -> None:
    """Not every interpreter of the language says so of a state that is tried for the first time."""
    given = {
        "input": {"rank": 2, "attempt": losses, "address": "10.73.0.9:8000"},
        "context": {"State": state},
    }
    arguments = evaluated(states(rendered)["RunWorker"]["Arguments"], states=given, experiment=item)
    (container,) = arguments["Overrides"]["ContainerOverrides"]
    said = {pair["Name"]: pair["Value"] for pair in container["Environment"]}
    assert said["WORKER_ATTEMPT"] == str(losses + retries)
    assert TaskEnvironment.from_environ(said).worker_attempt == losses + retries


def test_each_shard_has_a_server_and_workers_are_told_all_addresses(rendered: Machine) -> None:
    document = {"experiments": [{"mode": "sync", "workers": 2}], "shards": 3}
    item = launch_item(plan(parse_study(document), "study-1")[0])
    found = states(rendered)
    for name in ("RunServers", "AwaitServers"):
        assert evaluated(found[name]["Items"], experiment=item) == [0, 0, 0]
        context = {"Map": {"Item": {"Index": 2, "Value": 0}}}
        selected = evaluated(found[name]["ItemSelector"], states={"context": context}, experiment=item)
        assert selected["shard"] == 2
    said = evaluated(found["RunServer"]["Arguments"], states={"input": {"shard": 2}}, experiment=item)
    (container,) = said["Overrides"]["ContainerOverrides"]
    server = TaskEnvironment.from_environ({p["Name"]: p["Value"] for p in container["Environment"]})
    assert (server.shards, server.shard_index) == (3, 2)
    for addresses in (["10.0.0.1:8000"], ["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]):
        result = [{"address": address} for address in addresses]
        output = evaluated(found["AwaitServers"]["Output"], states={"result": result})
        assert output == {"address": ",".join(addresses)}


def test_workers_are_told_apart_and_find_the_server(rendered: Machine, item: dict[str, Any]) -> None:
    workers = states(rendered)["RunWorkers"]
    assert evaluated(workers["Items"], experiment=item) == [0, 0, 0]
    context = {"Map": {"Item": {"Index": 1, "Value": 3}}}
    selected = evaluated(
        workers["ItemSelector"],
        states={"input": {"address": "10.73.0.9:8000"}, "context": context},
        experiment=item,
    )
    assert selected == {
        "rank": 1,
        "restarts": 3,
        "vain_starts": VAIN_STARTS,
        "attempt": 0,
        "address": "10.73.0.9:8000",
    }


class Life(NamedTuple):
    """What became of one task: with which input it was started each time, and the state that ended it."""

    starts: list[dict[str, Any]]
    end: str


def life(
    machine: Machine, start_at: str, given: dict[str, Any], losses: Iterable[dict[str, str]], **variables: Any
) -> Life:
    """Follow a task's way from state to state; it is lost as `losses` say, and then ends well."""
    found, lost, starts, name = states(machine), iter(losses), [], start_at
    while True:
        state = found[name]
        if state["Type"] == "Task":
            starts.append(given)
            if (error := next(lost, None)) is None:
                return Life(starts, name)
            (catcher,) = state["Catch"]
            assert catcher["ErrorEquals"] == ["States.ALL"]
            told = {"input": given, "errorOutput": error, "context": {"State": {"RetryCount": 0}}}
            given, name = evaluated(catcher["Output"], states=told, **variables), catcher["Next"]
        elif state["Type"] == "Choice":
            met = (
                choice["Next"]
                for choice in state["Choices"]
                if evaluated(choice["Condition"], states={"input": given}, **variables)
            )
            name = next(met, state["Default"])
        elif state["Type"] == "Wait":
            given, name = evaluated(state.get("Output", given), states={"input": given}), state["Next"]
        else:
            return Life(starts, name)


def exited(code: int | None) -> dict[str, str]:
    """What Step Functions says of a task that ended badly: ECS's description, keys in the order of letters."""
    container = {
        "ContainerArn": "arn:aws:ecs:…",
        "Cpu": "0",
        "ExitCode": code,
        "GpuIds": [],
        "Name": "worker",
    }
    cause = json.dumps({"Attachments": [], "Containers": [container]}, separators=(",", ":"))
    return {"Error": "States.TaskFailed", "Cause": cause}


KILLED, TAKEN_AWAY, GAVE_UP = exited(137), exited(None), exited(1)
NOT_STARTED = {"Error": "ECS.TaskFailedToStartException", "Cause": "RESOURCE:FARGATE"}
TIMED_OUT = {"Error": "States.Timeout"}


def lost_worker(rendered: Machine, document: dict[str, Any], *losses: dict[str, str]) -> Life:
    """What becomes of worker 1 of two."""
    document = {"experiments": [{"mode": "async", "workers": 2}], **document}
    own = launch_item(plan(parse_study(document), "study-1")[0])
    selector = states(rendered)["RunWorkers"]["ItemSelector"]
    value = evaluated(states(rendered)["RunWorkers"]["Items"], experiment=own)[1]
    context = {"Map": {"Item": {"Index": 1, "Value": value}}}
    told = {"input": {"address": "10.73.0.9:8000"}, "context": context}
    given = evaluated(selector, states=told, experiment=own)
    return life(rendered, "RunWorker", given, losses, experiment=own)


def test_a_lost_worker_fails_the_others_unless_the_study_says_otherwise(rendered: Machine) -> None:
    ended = lost_worker(rendered, {}, KILLED)
    assert (len(ended.starts), ended.end) == (1, "LoseWorker")
    failure = evaluated(states(rendered)["LoseWorker"], states={"input": {"error": "E", "cause": "why"}})
    # A Fail state must not use the names of Step Functions itself, States.….
    assert (failure["Type"], failure["Error"], failure["Cause"]) == ("Fail", "WorkerLost", "E: why")


@pytest.mark.parametrize("loss", [KILLED, TAKEN_AWAY, {"Error": "E"}])
def test_a_struck_worker_is_started_again_under_its_rank(rendered: Machine, loss: dict[str, str]) -> None:
    ended = lost_worker(rendered, {"on_worker_loss": "continue"}, loss, loss)
    assert [(start["rank"], start["attempt"], start["address"]) for start in ended.starts] == [
        (1, attempt, "10.73.0.9:8000") for attempt in range(3)
    ]
    assert ended.end == "RunWorker"


@pytest.mark.parametrize("crash", [[], [{"rank": 1, "step": 20}]], ids=["", "to stay away"])
@pytest.mark.parametrize("rule", ["fail", "continue"])
def test_a_worker_that_never_started_is_started_again_whatever_a_loss_means(
    rendered: Machine, rule: str, crash: list[dict[str, int]]
) -> None:
    """Nothing has run: the next one is the first of its rank, with all its crashes to come."""
    document = {"on_worker_loss": rule, "faults": {"crashes": crash}}
    ended = lost_worker(rendered, document, *[NOT_STARTED] * VAIN_STARTS)
    assert [start["attempt"] for start in ended.starts] == [0] * (1 + VAIN_STARTS)
    assert len({start["restarts"] for start in ended.starts}) == 1
    assert ended.end == "RunWorker"


def test_a_worker_that_never_starts_is_lost_in_the_end(rendered: Machine) -> None:
    ended = lost_worker(rendered, {}, *[NOT_STARTED] * 10)
    assert (len(ended.starts), ended.end) == (1 + VAIN_STARTS, "LoseWorker")
    ended = lost_worker(rendered, {"on_worker_loss": "continue"}, *[NOT_STARTED] * 10)
    assert (len(ended.starts), ended.end) == (1 + VAIN_STARTS + RESTARTS, "GoOnWithoutWorker")


def test_the_others_go_on_without_a_worker_that_is_struck_each_time(rendered: Machine) -> None:
    ended = lost_worker(rendered, {"on_worker_loss": "continue"}, *[KILLED] * 10)
    assert (len(ended.starts), ended.end) == (RESTARTS + 1, "GoOnWithoutWorker")
    assert states(rendered)["GoOnWithoutWorker"]["End"] is True


@pytest.mark.parametrize("loss", [GAVE_UP, TIMED_OUT], ids=["gave up", "timed out"])
def test_a_worker_that_would_end_so_again_is_not_started_again(
    rendered: Machine, loss: dict[str, str]
) -> None:
    ended = lost_worker(rendered, {"on_worker_loss": "continue"}, loss)
    assert (len(ended.starts), ended.end) == (1, "GoOnWithoutWorker")


@pytest.mark.parametrize(("restart_after", "starts"), [({}, 1), ({"restart_after_seconds": 5}, 2)])
def test_a_worker_that_is_to_stay_away_is_not_started_again(
    rendered: Machine, restart_after: dict[str, int], starts: int
) -> None:
    crash = {"rank": 1, "step": 20, **restart_after}
    ended = lost_worker(rendered, {"on_worker_loss": "continue", "faults": {"crashes": [crash]}}, KILLED)
    assert len(ended.starts) == starts


@pytest.mark.parametrize(
    ("document", "losses", "starts", "end"),
    [
        ({}, [KILLED], 1, "LoseServer"),
        ({}, [NOT_STARTED, NOT_STARTED], 3, "RunServer"),
        ({}, [NOT_STARTED] * 10, 3, "LoseServer"),
        ({}, [NOT_STARTED, KILLED], 2, "LoseServer"),
        ({"on_worker_loss": "continue"}, [KILLED], 1, "LoseServer"),
        ({"checkpoint": {}}, [], 1, "RunServer"),
        ({"checkpoint": {}}, [KILLED, TAKEN_AWAY], 3, "RunServer"),
        ({"checkpoint": {}}, [KILLED] * 10, RESTARTS + 1, "LoseServer"),
        ({"checkpoint": {}}, [GAVE_UP], 1, "LoseServer"),
        ({"checkpoint": {}}, [TIMED_OUT], 1, "LoseServer"),
    ],
)
def test_a_struck_server_with_checkpoints_is_started_again(
    rendered: Machine, document: dict[str, Any], losses: list[dict[str, str]], starts: int, end: str
) -> None:
    own = launch_item(plan(parse_study(document), "study-1")[0])
    context = {"Map": {"Item": {"Index": 0, "Value": own["server_restarts"][0]}}}
    selector = states(rendered)["RunServers"]["ItemSelector"]
    given = evaluated(selector, states={"context": context}, experiment=own)
    ended = life(rendered, "RunServer", given, losses, experiment=own)
    assert (len(ended.starts), ended.end) == (starts, end)
    assert (states(rendered)["LoseServer"]["Type"], states(rendered)["LoseServer"]["Error"]) == (
        "Fail",
        "ServerLost",
    )


def test_the_exit_code_that_is_not_tried_again_is_that_of_a_task_that_gave_up() -> None:
    """A server without its settings gives up before it listens."""
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "server"],
        cwd=REPOSITORY,
        env={"SERVER_MODE": "none"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert exited(done.returncode) == GAVE_UP


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"Error": "States.TaskFailed", "Cause": "…"}, {"Error": "States.TaskFailed", "Cause": "…"}),
        ([{}, [{"role": "worker"}]], None),
    ],
    ids=["a branch failed", "both branches ended"],
)
def test_judging_is_told_of_an_error_only_where_there_was_one(
    rendered: Machine, item: dict[str, Any], given: object, error: object
) -> None:
    judge = states(rendered)["JudgeExperiment"]["Arguments"]["Payload"]
    assert evaluated(judge, states={"input": given}, experiment=item) == {
        "study_id": "study-1",
        "experiment": "one",
        "error": error,
    }


@pytest.mark.parametrize(("told", "redrives"), [({}, 0), ({"RedriveCount": 2}, 2)])
def test_planning_is_told_which_execution_it_is_for(
    rendered: Machine, told: dict[str, int], redrives: int
) -> None:
    """Its name alone may have been that of another one."""
    context = {
        "Execution": {
            "Name": "study-1",
            "Id": "arn:aws:states:…:study-1",
            "StartTime": "2026-03-01T12:00:00Z",
            "Input": {"seeds": [0]},
            **told,
        }
    }
    payload = rendered["States"]["PlanStudy"]["Arguments"]["Payload"]
    # Of a redriven execution, the input of PlanStudy is ConcludeStudy's output.
    assert evaluated(payload, states={"input": {"again": True}, "context": context}) == {
        "study_id": "study-1",
        "execution_arn": "arn:aws:states:…:study-1",
        "execution_started_at": "2026-03-01T12:00:00Z",
        "redrives": redrives,
        "study": {"seeds": [0]},
    }


ERROR = {"Error": "DynamoDB.AccessDeniedException", "Cause": "not authorized"}
JUDGED = {"name": "one", "status": "COMPLETED"}


@pytest.mark.parametrize(
    ("state", "input_"), [("MarkRunning", {"name": "one"}), ("JudgeExperiment", {"Error": "…"})]
)
def test_what_left_an_experiment_without_a_verdict_is_handed_on(
    rendered: Machine, item: dict[str, Any], state: str, input_: dict[str, Any]
) -> None:
    (catcher,) = states(rendered)[state]["Catch"]
    assert catcher["Next"] == "LeaveToReconcile"
    long = {**ERROR, "Cause": "x" * 30_000}
    left = evaluated(catcher["Output"], states={"input": input_, "errorOutput": long}, experiment=item)
    assert left == {"name": "one", "error": {**ERROR, "Cause": "x" * 1000}}
    bare = {"Error": "States.Timeout"}
    left = evaluated(catcher["Output"], states={"input": input_, "errorOutput": bare}, experiment=item)
    assert left == {"name": "one", "error": {"Error": "States.Timeout", "Cause": ""}}


@pytest.mark.parametrize("failed", [0, 1, 2])
def test_reconciling_is_told_of_every_experiment_without_a_verdict(rendered: Machine, failed: int) -> None:
    top = rendered["States"]
    unjudged = [{"name": f"other-{i}", "error": ERROR} for i in range(failed)]
    output = evaluated(top["RunExperiments"]["Output"], states={"result": [JUDGED, *unjudged]})
    assert output == {"unjudged": unjudged}
    context = {"Execution": {"Name": "study-1"}}
    payload = top["ReconcileMetrics"]["Arguments"]["Payload"]
    assert evaluated(payload, states={"input": output, "context": context}) == {
        "study_id": "study-1",
        "unjudged": unjudged,
    }
    (catcher,) = top["RunExperiments"]["Catch"]
    assert catcher["Output"] == {"unjudged": []}


def test_a_refused_study_starts_nothing_and_says_why(rendered: Machine) -> None:
    top = rendered["States"]
    choice, *_ = top["AcceptStudy"]["Choices"]
    refused = {"refusal": "study refused: 1 problem", "experiments": []}
    assert evaluated(choice["Condition"], states={"input": refused}) is True
    assert choice["Next"] == "RefuseStudy"
    assert evaluated(top["RefuseStudy"]["Cause"], states={"input": refused}) == refused["refusal"]
    assert evaluated(choice["Condition"], states={"input": {"refusal": ""}}) is False
    assert top["AcceptStudy"]["Default"] == "RunExperiments"


def test_a_dry_run_ends_with_its_plan_and_starts_nothing(rendered: Machine) -> None:
    top = rendered["States"]
    _, choice, *_ = top["AcceptStudy"]["Choices"]
    dry = {"refusal": "", "experiments": [], "plan": {"total_usd": 1.5, "problems": []}}
    assert evaluated(choice["Condition"], states={"input": dry}) is True
    shown = top[choice["Next"]]
    assert evaluated(shown["Output"], states={"input": dry}) == dry["plan"]
    assert (shown["Type"], shown["End"]) == ("Pass", True)
    true_one = {"refusal": "", "experiments": [{}], "max_parallel_experiments": 2}
    assert evaluated(choice["Condition"], states={"input": true_one}) is False


DATASET = {"name": "mnist", "location": "s3://bucket/datasets/mnist", "download": "true"}
STUDY_1 = {"Execution": {"Name": "study-1"}}


def accepted(rendered: Machine, state: str, given: dict[str, Any]) -> str:
    """The state that a Choice leads to."""
    choices = rendered["States"][state]["Choices"]
    met = (c["Next"] for c in choices if evaluated(c["Condition"], states={"input": given}))
    following: str = next(met, rendered["States"][state]["Default"])
    return following


@pytest.mark.parametrize(
    ("dataset", "following"),
    [({"dataset": DATASET}, "PrepareDataset"), ({"dataset": None}, "RunExperiments")],
)
def test_a_data_set_is_prepared_before_any_experiment_runs(
    rendered: Machine, dataset: dict[str, Any], following: str
) -> None:
    planned = {"refusal": "", "experiments": [], "max_parallel_experiments": 2, **dataset}
    assert accepted(rendered, "AcceptStudy", planned) == following


def test_the_task_that_prepares_is_told_what_it_reads(rendered: Machine) -> None:
    told = {"input": {"dataset": DATASET}, "context": STUDY_1}
    arguments = evaluated(rendered["States"]["PrepareDataset"]["Arguments"], states=told)
    assert arguments["Group"] == preparation_group("study-1")
    assert study_of_group(arguments["Group"]) == "study-1"
    (container,) = arguments["Overrides"]["ContainerOverrides"]
    assert container["Name"] == "prepare"
    said = {pair["Name"]: pair["Value"] for pair in container["Environment"]}
    assert said.keys() - OTHERS_VARIABLES <= {name.upper() for name in Preparation.model_fields}
    assert Preparation.from_environ(said) == Preparation(
        study_id="study-1",
        dataset=Dataset.MNIST,
        data_directory="s3://bucket/datasets/mnist",
        dataset_download=True,
        table_name="<TableName>",
    )


def found_dataset(
    rendered: Machine, row: dict[str, Any], given: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """What FindDataset makes of the row, and the state that this leads to."""
    find = rendered["States"]["FindDataset"]
    asked = evaluated(find["Arguments"], states={"input": given, "context": STUDY_1})
    assert asked["Key"] == {
        PARTITION_KEY: {"S": dataset_partition("study-1")},
        SORT_KEY: {"S": DATASET_SORT},
    }
    output = evaluated(find["Output"], states={"input": given, "result": row})
    assert find["Next"] == "AcceptDataset"
    return output, accepted(rendered, "AcceptDataset", output)


PLANNED = {
    "dataset": DATASET,
    "experiments": [{"name": "one"}, {"name": "two"}],
    "vain_starts": VAIN_STARTS,
    "max_parallel_experiments": 2,
}


def test_experiments_run_once_their_data_set_is_ready(rendered: Machine) -> None:
    output, following = found_dataset(rendered, {"Item": {DATASET_STATUS: {"S": DATASET_READY}}}, PLANNED)
    assert following == "RunExperiments"
    assert output.items() >= PLANNED.items()


@pytest.mark.parametrize(
    ("row", "error", "why"),
    [
        ({"Item": {DATASET_STATUS: {"S": "FAILED"}, DATASET_CAUSE: {"S": "no way out"}}}, {}, "no way out"),
        ({"Item": {DATASET_STATUS: {"S": "FAILED"}, DATASET_CAUSE: {"S": "x" * 9000}}}, {}, "x" * 1000),
        ({}, {}, "the task that prepares mnist ended without a word"),
        (
            {},
            {"Error": "ECS.TaskFailedToStartException", "Cause": "CannotPullContainerError"},
            "the task that prepares mnist ended without a word:"
            " ECS.TaskFailedToStartException: CannotPullContainerError",
        ),
    ],
)
def test_without_its_data_set_no_experiment_starts_and_each_says_why(
    rendered: Machine, row: dict[str, Any], error: dict[str, str], why: str
) -> None:
    given = PLANNED
    if error:
        (catcher,) = rendered["States"]["PrepareDataset"]["Catch"]
        assert catcher["Next"] == "PreparationEndedBadly"
        given = evaluated(catcher["Output"], states={"input": PLANNED, "errorOutput": error})
    output, following = found_dataset(rendered, row, given)
    assert following == "GiveUpExperiments"
    given_up = rendered["States"]["GiveUpExperiments"]
    assert given_up["Next"] == "ReconcileMetrics"
    assert evaluated(given_up["Output"], states={"input": output}) == {
        "unjudged": [
            {"name": name, "error": {"Error": "DatasetNotReady", "Cause": why}} for name in ("one", "two")
        ]
    }


@pytest.mark.parametrize(
    ("error", "starts"),
    [(NOT_STARTED, 1 + VAIN_STARTS), ({**KILLED, "Cause": "x" * 30_000}, 1), (GAVE_UP, 1), (TIMED_OUT, 1)],
)
def test_a_preparation_that_never_started_is_started_again(
    rendered: Machine, error: dict[str, str], starts: int
) -> None:
    given, seen, name = PLANNED, 0, "PrepareDataset"
    while name != "FindDataset":
        state = rendered["States"][name]
        if state["Type"] == "Task":
            seen += 1
            (catcher,) = state["Catch"]
            given = evaluated(catcher["Output"], states={"input": given, "errorOutput": error})
            name = catcher["Next"]
        elif state["Type"] == "Choice":
            name = accepted(rendered, name, given)
        else:
            given, name = evaluated(state["Output"], states={"input": given}), state["Next"]
    assert seen == starts


def test_a_row_that_cannot_be_read_is_no_data_set(rendered: Machine) -> None:
    (catcher,) = rendered["States"]["FindDataset"]["Catch"]
    assert catcher["Next"] == "GiveUpExperiments"
    given = evaluated(catcher["Output"], states={"input": PLANNED, "errorOutput": ERROR})
    output = evaluated(rendered["States"]["GiveUpExperiments"]["Output"], states={"input": given})
    assert {each["error"]["Cause"] for each in output["unjudged"]} == {
        "the task that prepares mnist ended without a word: DynamoDB.AccessDeniedException: not authorized"
    }
