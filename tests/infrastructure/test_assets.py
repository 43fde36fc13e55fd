"""What is uploaded: code of the functions, context of the image, and nothing that lies about beside them."""

import re
from pathlib import Path

import pytest

from tests.infrastructure.conftest import REPOSITORY, Assembly


def code(assembly: Assembly) -> Path:
    """Folder of the one asset that all functions share."""
    (asset,) = (a for a in assembly.assets["files"].values() if "PlanStudy" in a["displayName"])
    keys = {function["Code"]["S3Key"] for function in assembly.functions().values()}
    assert keys == {destination["objectKey"] for destination in asset["destinations"].values()}
    return assembly.folder / str(asset["source"]["path"])


def image(assembly: Assembly) -> tuple[Path, str]:
    """Build context of the one image, and its Dockerfile below it."""
    (asset,) = assembly.assets["dockerImages"].values()
    return assembly.folder / asset["source"]["directory"], asset["source"]["dockerFile"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def committed(*packages: str) -> set[str]:
    """What belongs to these packages of the repository."""
    return {
        str(path.relative_to(REPOSITORY))
        for package in packages
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def test_functions_get_contract_and_lambdas_alone(assembly: Assembly) -> None:
    assert {path.name for path in code(assembly).iterdir()} == {"contract", "lambdas"}
    assert files(code(assembly)) == committed("contract", "lambdas")
    assert "lambdas/publish_report/report.html.j2" in files(code(assembly))


def test_the_image_gets_contract_and_runtime_alone(assembly: Assembly) -> None:
    context, dockerfile = image(assembly)
    assert {path.name for path in context.iterdir()} == {"contract", "runtime"}
    assert files(context) == committed("contract", "runtime")
    assert dockerfile == "runtime/Dockerfile"
    assert {
        "runtime/Dockerfile",
        "runtime/requirements.txt",
        "runtime/data/digits.csv.gz",
        "runtime/wire/parameter_server_pb2.py",
    } <= files(context)


def test_the_image_is_built_from_what_is_in_its_context(assembly: Assembly) -> None:
    context, dockerfile = image(assembly)
    copies = re.findall(r"^COPY (?!--from)(.+)$", (context / dockerfile).read_text(), flags=re.MULTILINE)
    sources = [source for copied in copies for source in copied.split()[:-1] if "*" not in source]
    assert {"contract", "runtime"} <= set(sources)
    assert [source for source in sources if not (context / source).exists()] == []


@pytest.mark.parametrize("which", [code, lambda assembly: image(assembly)[0]], ids=["functions", "image"])
def test_no_caches_are_uploaded(assembly: Assembly, which: object) -> None:
    assert callable(which)
    assert [path for path in which(assembly).rglob("*") if path.name == "__pycache__"] == []
