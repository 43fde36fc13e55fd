"""Which image a stack's tasks want, what it is built from, and what a user hears where that cannot be done."""

from __future__ import annotations

import gc
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from local.engines import DockerEngine, unsuitable
from local.images import BuildSettings, ImageAsset, ImageFailed, image_assets, write_context
from local.processes import ProcessFailed

PLACE = {"account": "111122223333", "region": "eu-west-1"}
URI = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/assets-111122223333-eu-west-1:abc"


def manifest(folder: Path, docker_images: dict[str, Any]) -> Path:
    file = folder / "Stack.assets.json"
    file.write_text(json.dumps({"version": "1", "files": {}, "dockerImages": docker_images}))
    return file


def test_an_image_asset_is_known_by_the_end_of_its_uri(tmp_path: Path) -> None:
    file = manifest(
        tmp_path,
        {
            "abc": {
                "source": {
                    "directory": "asset.abc",
                    "dockerFile": "runtime/Dockerfile",
                    "platform": "linux/amd64",
                },
                "destinations": {
                    "current_account-current_region": {
                        "repositoryName": "assets-${AWS::AccountId}-${AWS::Region}",
                        "imageTag": "abc",
                    }
                },
            }
        },
    )

    (asset,) = image_assets(file, **PLACE)

    assert asset == ImageAsset(
        name="assets-111122223333-eu-west-1:abc",
        context=tmp_path / "asset.abc",
        dockerfile="runtime/Dockerfile",
        platform="linux/amd64",
    )
    assert URI.endswith(f"/{asset.name}")


def test_a_stack_may_have_no_image_asset(tmp_path: Path) -> None:
    assert image_assets(manifest(tmp_path, {}), **PLACE) == []


def test_the_context_is_the_asset_with_the_wheels_beside_it(tmp_path: Path) -> None:
    # Given a context, and a folder with wheels and something else
    asset, wheels = tmp_path / "asset", tmp_path / "downloads"
    (asset / "runtime").mkdir(parents=True)
    (asset / "runtime" / "Dockerfile").write_text("FROM scratch")
    wheels.mkdir()
    for name in ("b-1-py3-none-any.whl", "a-1-py3-none-any.whl", "notes.txt"):
        (wheels / name).write_text(name)

    # When it is packed
    packed = io.BytesIO()
    write_context(packed, asset, wheels)
    packed.seek(0)

    # Then it has the files of the one and the wheels of the other
    with tarfile.open(fileobj=packed) as archive:
        files = [member.name.removeprefix("./") for member in archive if member.isfile()]
    assert files == ["runtime/Dockerfile", "wheels/a-1-py3-none-any.whl", "wheels/b-1-py3-none-any.whl"]


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "a-1-py3-none-any.whl").touch()
    settings = BuildSettings.from_environment(
        {"LOCKSTEP_BASE_IMAGE": "base:1", "LOCKSTEP_WHEELS": str(tmp_path), "LOCKSTEP_TORCH_INDEX": "u"}
    )

    assert settings.arguments == {"BASE_IMAGE": "base:1", "TORCH_INDEX": "u"}
    assert settings.wheels == tmp_path


@pytest.mark.parametrize("environment", [{}, {"LOCKSTEP_BASE_IMAGE": "", "LOCKSTEP_WHEELS": ""}])
def test_what_is_not_set_is_left_to_the_dockerfile(environment: dict[str, str]) -> None:
    settings = BuildSettings.from_environment(environment)

    assert (settings.arguments, settings.wheels) == ({}, None)


def test_a_wheel_folder_without_wheels_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ImageFailed, match=r"LOCKSTEP_WHEELS.*pip download"):
        BuildSettings.from_environment({"LOCKSTEP_WHEELS": str(tmp_path / "nothing")})


# docker-py leaves the socket of a failed connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_no_engine_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    url = f"unix://{tmp_path / 'no.sock'}"

    with pytest.raises(ProcessFailed) as failure:
        DockerEngine(tmp_path, engine_url=url).start()

    message = str(failure.value)
    assert "\n" not in message
    for part in (url, "systemctl start docker", "DOCKER_HOST", "--engine process", "No such file"):
        assert part in message
    assert list(tmp_path.iterdir()) == []
    del failure
    gc.collect()  # here, where the warning is still ignored


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (
            {"OSType": "linux", "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]},
            "rootless",
        ),
        ({"OSType": "linux", "OperatingSystem": "Docker Desktop"}, "virtual machine"),
        ({"OSType": "windows"}, "windows"),
    ],
)
def test_an_engine_whose_host_network_is_another_ones_is_refused(info: dict[str, Any], reason: str) -> None:
    assert reason in (unsuitable(info) or "")


@pytest.mark.parametrize(
    "info", [{}, {"OSType": "linux", "OperatingSystem": "Debian", "SecurityOptions": None}]
)
def test_an_engine_of_this_machine_will_do(info: dict[str, Any]) -> None:
    assert unsuitable(info) is None
