"""Run the papers' studies and write what came out: `python -m bench.science [--only dutta,zhang] [--from-results]`.

Runs on one machine, by hand; starts `./lockstep run … --local` for each study, one after another. Results stay in
results/; bench/results/science.json keeps the figures of which plots and page are made. Exit codes: 0 done, 1 a study
failed or its results cannot be used, 2 wrong usage.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.science.experiment import Experiment, Unusable, experiment_of
from bench.science.figures import chen, dutta, zhang
from bench.science.page import page
from bench.science.plots import plots
from contract.study import Study, parse_study

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "examples" / "science"
RESULTS = ROOT / "results"
FIGURES = ROOT / "bench" / "results" / "science.json"
DOCS = ROOT / "docs"


class Paper(NamedTuple):
    """Its studies by the name that their figures go under, and what is computed of each."""

    studies: Mapping[str, Sequence[str]]
    """What tells a paper's figures apart ("" where there are one's) → files in examples/science, which make them."""
    figures: Callable[[Sequence[Experiment]], dict[str, Any]]

    @property
    def files(self) -> list[str]:
        """All of them."""
        return [file for files in self.studies.values() for file in files]


PAPERS: Final[Mapping[str, Paper]] = {
    # Epochs are a study's: one of sync lasts as long as 2.7 of async's.
    "dutta": Paper({"": ("dutta-sync", "dutta-async")}, dutta),
    "zhang": Paper({"": ("zhang",)}, zhang),
    "chen": Paper({"exponential": ("chen-exponential",), "pareto": ("chen-pareto",)}, chen),
}


def main(argv: Sequence[str]) -> int:
    """Do what the arguments say; returns the exit code."""
    arguments = _parse(argv)
    try:
        for paper in arguments.only:
            if not arguments.from_results:
                for file in PAPERS[paper].files:
                    run(STUDIES / f"{file}.json")
            keep(paper, evaluate(paper, RESULTS), FIGURES)
    except (Unusable, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write(json.loads(FIGURES.read_text(encoding="utf-8")), DOCS)
    return 0


def run(file: Path) -> None:
    """Run a study on the embedded cloud; its results lie in RESULTS afterwards. Raises CalledProcessError."""
    subprocess.run(
        ["./lockstep", "run", str(file), "--local", "--output", str(RESULTS)], cwd=ROOT, check=True
    )


def evaluate(paper: str, results: Path) -> dict[str, Any]:
    """The figures of a paper, of the newest results of its studies. Raises Unusable."""
    figures: dict[str, Any] = {}
    studies = []
    for name, files in PAPERS[paper].studies.items():
        experiments = []
        for file in files:
            found, told = _read_study(file, results)
            experiments += found
            studies.append({"paper": paper, **told})
        computed = PAPERS[paper].figures(experiments)
        figures.update({name: computed} if name else computed)
    return {"studies": studies, paper: figures}


def _read_study(file: str, results: Path) -> tuple[list[Experiment], dict[str, Any]]:
    """The experiments of the newest results of a study, and what is told of it. Raises Unusable."""
    study = parse_study(json.loads((STUDIES / f"{file}.json").read_text(encoding="utf-8")))
    folder = newest(results, study.name)
    experiments, machine = read(folder, study)
    return experiments, {
        "study": study.name,
        "run": folder.name,
        "seeds": sorted({experiment.seed for experiment in experiments}),
        "seconds": seconds_of(folder),
        "machine": machine,
    }


def newest(results: Path, name: str) -> Path:
    """The folder of the last study of that name. Raises Unusable if there is none."""
    # A name, the time and four digits: `science-chen` is not to find `science-chen-pareto`.
    folders = [
        folder for folder in results.glob(f"{name}-*-*-*") if folder.name.count("-") == name.count("-") + 3
    ]
    if not folders:
        raise Unusable(f"{results} has no results of {name}: run it first, without --from-results")
    return max(folders, key=lambda folder: folder.name)


def read(folder: Path, study: Study) -> tuple[list[Experiment], str]:
    """The experiments of a study, and the machine they ran on. Raises Unusable where one is not this study's."""
    experiments, machines = [], dict[str, None]()
    for cell in study.cells():
        file = folder / "experiments" / f"{cell.name}.json"
        if not file.exists():
            raise Unusable(f"{folder.name} lacks {cell.name}: the study has changed; run it again")
        document = json.loads(file.read_text(encoding="utf-8"))
        experiment = experiment_of(document)
        if (experiment.training, experiment.compute) != (study.training, study.compute):
            raise Unusable(f"{folder.name} was run with other settings than the study now has: run it again")
        experiments.append(experiment)
        machines |= dict.fromkeys(
            f"{task['cpu_model']}, {task['cpu_count']} cores; Python {task['python_version']},"
            f" torch {task['torch_version']}, {task['threads']} thread per process"
            for task in document["provenance"]
        )
    return experiments, "; ".join(machines)


def seconds_of(folder: Path) -> float:
    """From the start of a study to its end."""
    outcome = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    began, ended = (datetime.fromisoformat(outcome[key]) for key in ("started_at", "ended_at"))
    return (ended - began).total_seconds()


def keep(paper: str, found: Mapping[str, Any], file: Path) -> None:
    """Put a paper's figures into the file, in place of those that it had; the other papers' stay."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"studies": []}
    kept["studies"] = [study for study in kept["studies"] if study["paper"] != paper] + list(found["studies"])
    kept[paper] = found[paper]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_text(kept), encoding="utf-8")


def as_text(found: Mapping[str, Any]) -> str:
    """JSON in lines of a handy length: a list of numbers stands in one."""
    text = json.dumps(rounded(found), indent=1)
    # No string has an end of line in it: what follows one is layout.
    return re.sub(r'\[\n[^][{}"]*\]', lambda found: " ".join(found[0].split()), text) + "\n"


def rounded(value: Any) -> Any:
    """JSON with five significant digits: more would be noise in a diff."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def write(found: Mapping[str, Any], docs: Path) -> None:
    """Fill in docs/science.md and draw its plots."""
    for name, image in plots(found).items():
        (docs / "images" / name).write_bytes(image)
    file = docs / "science.md"
    file.write_text(page(file.read_text(encoding="utf-8"), found), encoding="utf-8")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.science", description=__doc__)
    parser.add_argument(
        "--only", type=_papers, default=list(PAPERS), metavar="PAPERS", help=f"some of {', '.join(PAPERS)}"
    )
    parser.add_argument("--from-results", action="store_true", help="run nothing: read what results/ has")
    return parser.parse_args(argv)


def _papers(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [paper for paper in chosen if paper not in PAPERS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(PAPERS)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
