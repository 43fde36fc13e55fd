"""Expand a study into its experiments, and each experiment into what its tasks are started with.

Used by plan_study and by the command line; pure.
"""

from pydantic import BaseModel, ConfigDict

from contract.aggregation import Aggregation, Mode
from contract.catalogue import MODELS_FOR, STORED
from contract.checkpoint import Checkpointing
from contract.compute import Compute
from contract.exchange import Exchange
from contract.faults import Faults, OnWorkerLoss
from contract.network import Network
from contract.study import Study, TaskSize, WorkerSize
from contract.training import Training


class Experiment(BaseModel):
    """One cell of a study: a mode, a number of workers, a seed, and everything its tasks must know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study_id: str
    name: str
    mode: Mode
    workers: int
    seed: int
    aggregation: Aggregation = Aggregation()
    training: Training
    compute: Compute
    exchange: Exchange = Exchange()
    network: Network = Network()
    faults: Faults = Faults()
    on_worker_loss: OnWorkerLoss = "fail"
    checkpoint: Checkpointing | None = None
    shards: int = 1
    server: TaskSize
    worker: WorkerSize
    timeout_seconds: int

    @property
    def task_group(self) -> str:
        """The ECS task group of this experiment's tasks: how clean-up finds them."""
        return task_group(self.study_id, self.name)

    @property
    def task_count(self) -> int:
        """Its servers, one for each shard of the parameters, and its workers."""
        return self.shards + self.workers


def task_group(study_id: str, experiment: str) -> str:
    """The ECS task group that all tasks of one experiment share."""
    return f"{study_id}/{experiment}"


def preparation_group(study_id: str) -> str:
    """The ECS task group of the task that prepares a study's data set: no experiment can have that name."""
    return task_group(study_id, "_dataset")


def study_of_group(group: str) -> str | None:
    """The study id in an ECS task group, or None where the group is not one of ours."""
    study_id, slash, experiment = group.partition("/")
    return study_id if slash and study_id and experiment else None


def plan(study: Study, study_id: str, datasets: str = "") -> list[Experiment]:
    """All experiments of `study`, in the order of its cells, each complete in itself.

    `datasets`: s3://bucket/prefix below which the deployment keeps data sets; without it, one that the study says no
    place for has none.
    """
    training = _complete(study.training, datasets)
    return [
        Experiment(
            study_id=study_id,
            name=cell.name,
            mode=cell.mode,
            workers=cell.workers,
            seed=cell.seed,
            aggregation=cell.aggregation,
            training=training,
            compute=study.compute,
            exchange=cell.exchange,
            network=cell.network,
            faults=study.faults,
            on_worker_loss=study.loss_rule,
            checkpoint=study.checkpoint,
            shards=study.shards,
            server=study.server,
            worker=study.worker,
            timeout_seconds=study.experiment_timeout_seconds,
        )
        for cell in study.cells()
    ]


def _complete(training: Training, datasets: str) -> Training:
    """The training with what its data set implies: a model, and where a stored one lies."""
    dataset, data = training.dataset, training.data
    if data is None and dataset in STORED and datasets:
        data = f"{datasets}/{dataset}"
    return training.model_copy(update={"model": training.model or MODELS_FOR[dataset][0], "data": data})
