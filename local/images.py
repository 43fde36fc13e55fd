"""The runtime image of a stack for a Docker engine of this machine: which one its tasks want, and building it.

What `cdk deploy` does with Docker image assets, except for the push: the engine itself has the image then.
"""

import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import boto3
import docker
from docker.errors import DockerException, ImageNotFound

from contract.errors import LockstepError

BUILD_SECONDS = 900
"""Longest silence of a build: installing torch is one step."""


class ImageFailed(LockstepError):
    """The image could not be built; the message ends with what the build said last."""


@dataclass(frozen=True)
class ImageAsset:
    """A Docker image asset of a cloud assembly."""

    name: str
    """The end of its URI: repository and tag, the tag being the hash of its contents."""
    context: Path
    dockerfile: str
    platform: str | None


@dataclass(frozen=True)
class BuildSettings:
    """What a build is told beside its context."""

    base_image: str | None = None
    wheels: Path | None = None
    torch_index: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """LOCKSTEP_BASE_IMAGE, LOCKSTEP_WHEELS and LOCKSTEP_TORCH_INDEX. Raises ImageFailed."""
        wheels = environment.get("LOCKSTEP_WHEELS")
        if wheels and not list(Path(wheels).glob("*.whl")):
            raise ImageFailed(f"LOCKSTEP_WHEELS={wheels}: no wheels there; fill it with pip download")
        return cls(
            base_image=environment.get("LOCKSTEP_BASE_IMAGE") or None,
            wheels=Path(wheels) if wheels else None,
            torch_index=environment.get("LOCKSTEP_TORCH_INDEX") or None,
        )

    @property
    def arguments(self) -> dict[str, str]:
        """The build arguments; what is not set is left to the Dockerfile."""
        given = {"BASE_IMAGE": self.base_image, "TORCH_INDEX": self.torch_index}
        return {name: value for name, value in given.items() if value}


def task_images(session: boto3.Session) -> set[str]:
    """The URIs of the images that the registered task definitions name."""
    ecs = session.client("ecs")
    definitions = [
        ecs.describe_task_definition(taskDefinition=arn)["taskDefinition"]
        for arn in ecs.list_task_definitions()["taskDefinitionArns"]
    ]
    return {c["image"] for definition in definitions for c in definition["containerDefinitions"]}


def image_assets(manifest: Path, *, account: str, region: str) -> list[ImageAsset]:
    """The images of an asset manifest (`<stack>.assets.json`)."""
    known = {"${AWS::AccountId}": account, "${AWS::Region}": region, "${AWS::Partition}": "aws"}
    document: dict[str, Any] = json.loads(manifest.read_text())
    assets = []
    for image in document.get("dockerImages", {}).values():
        source = image["source"]
        for destination in image["destinations"].values():
            repository = destination["repositoryName"]
            for placeholder, value in known.items():
                repository = repository.replace(placeholder, value)
            assets.append(
                ImageAsset(
                    name=f"{repository}:{destination['imageTag']}",
                    context=manifest.parent / source["directory"],
                    dockerfile=source.get("dockerFile", "Dockerfile"),
                    platform=source.get("platform"),
                )
            )
    return assets


def provide_images(
    client: docker.DockerClient,
    uris: Collection[str],
    assets: Collection[ImageAsset],
    *,
    settings: BuildSettings,
    log: Path,
    progress: Callable[[str], None],
) -> None:
    """Build those of `uris` that are assets and that the engine does not have. Raises ImageFailed.

    An image that is no asset is in a registry: the engine pulls it when a task wants it.
    """
    for uri in sorted(uris):
        asset = next((asset for asset in assets if uri.endswith(f"/{asset.name}")), None)
        if asset is None or _has(client, uri):
            continue
        progress(f"building the runtime image (kept for the next time; its output: {log})")
        started = time.monotonic()
        _build(client, asset, uri, settings, log)
        progress(f"the runtime image was built in {time.monotonic() - started:.0f} s")


def write_context(target: IO[bytes], context: Path, wheels: Path | None) -> None:
    """The build context as a tar archive: a folder and, as `wheels/`, the wheels of another one."""
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.add(context, arcname=".")
        for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
            archive.add(wheel, arcname=f"wheels/{wheel.name}")


def _has(client: docker.DockerClient, uri: str) -> bool:
    try:
        client.images.get(uri)
    except ImageNotFound:
        return False
    return True


def _build(
    client: docker.DockerClient, asset: ImageAsset, uri: str, settings: BuildSettings, log: Path
) -> None:
    lines: list[str] = []
    with tempfile.TemporaryFile() as context, log.open("w") as output:
        write_context(context, asset.context, settings.wheels)
        context.seek(0)
        try:
            messages = client.api.build(
                fileobj=context,
                custom_context=True,
                dockerfile=asset.dockerfile,
                tag=uri,
                buildargs=settings.arguments,
                platform=asset.platform,
                # With wheels, nothing is reached; without, what this machine reaches, with or without a bridge.
                network_mode="none" if settings.wheels else "host",
                rm=True,
                forcerm=True,
                timeout=BUILD_SECONDS,
                decode=True,
            )
            for message in messages:
                text: str = message.get("stream") or message.get("error") or ""
                output.write(text)
                lines += text.splitlines()
                if "error" in message:
                    raise ImageFailed("the runtime image was not built:\n" + "\n".join(lines[-15:]))
        except DockerException as error:
            raise ImageFailed(f"the runtime image was not built: {error}") from error
