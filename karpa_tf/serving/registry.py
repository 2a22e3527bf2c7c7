"""Which versions of which models are served: looks at the disk, loads, unloads, and keeps the status."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2

from karpa_tf.errors import UserError
from karpa_tf.serving.canary import STABLE, Canary, share_of_labels
from karpa_tf.serving.refusal import Refusal, invalid

if TYPE_CHECKING:
    from karpa_tf.serving.model import Model, Signature
    from karpa_tf.serving.observing import Call

log = logging.getLogger(__name__)

State = get_model_status_pb2.ModelVersionStatus.State
Policy: Any = file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy
_LARGEST_VERSION = 2**63 - 1
_PENDING = (State.START, State.LOADING)


class Loader(Protocol):
    """Loads a version; called in a thread."""

    def __call__(self, name: str, version: int, path: Path) -> Model:
        """Returns the model, or raises a Refusal."""


@dataclass
class Version:
    """A version and what has become of it."""

    number: int
    path: Path
    state: int = State.START
    error: Refusal | None = None
    model: Model | None = None
    tries: int = 0
    retry_at: float = 0.0
    files: tuple[object, ...] = ()


@dataclass
class Served:
    """A model as it was asked for, and its versions by number."""

    name: str
    base_path: Path
    policy: Any
    labels: dict[str, int] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)
    removed: bool = False
    canary: Canary | None = None
    canary_gone: bool = False

    def available(self) -> list[int]:
        """Numbers of the versions that answer, the newest first."""
        return sorted((v.number for v in self.versions.values() if v.model), reverse=True)


class Registry:
    """The served models. All methods are called in the event loop.

    A version is loaded before the one that it replaces is unloaded, and a version that cannot be loaded
    replaces none.
    """

    def __init__(
        self,
        load: Loader,
        opened: Callable[[Model], None],
        *,
        poll_seconds: float = 1.0,
        retries: int = 5,
        retry_seconds: float = 60.0,
        allow_unavailable_labels: bool = False,
        tolerance: float = 0.1,
    ) -> None:
        self._load = load
        self._opened = opened
        self._poll_seconds = poll_seconds
        self._retries = retries
        self._retry_seconds = retry_seconds
        self._allow_unavailable_labels = allow_unavailable_labels
        self._tolerance = tolerance
        self._models: dict[str, Served] = {}
        self._roots: set[Path] = set()
        self._root: Path | None = None
        # One at a time: loading takes the memory and cores that answering needs.
        self._thread = ThreadPoolExecutor(1, "load")
        # Beside it, since a share may be slow; nothing that looks at the disk does so in the event loop.
        self._disk = ThreadPoolExecutor(1, "disk")
        self._turn = asyncio.Lock()
        self._poller: asyncio.Task[None] | None = None

    # --- What is served ---------------------------------------------------------------------------

    async def serve_folder(self, root: Path) -> None:
        """Serves every model below a folder, all versions; also those that come later.

        Raises:
            UserError: there is no such folder, or no model in it.
        """
        if not await self._look(root.is_dir):
            raise UserError(f"There is no folder {root}; karpa-tf export RUN --to {root} makes it.")
        if not await self._look(models_in, root):
            await self._look(check_base_path, root)
            raise UserError(
                f"{root} holds no model, which would be {root}/NAME/VERSION/saved_model.pb with a whole "
                "number as VERSION; karpa-tf export RUN writes one."
            )
        self._root = root.absolute()
        self._roots.add(await self._look(self._root.resolve))
        await self.poll()

    def start_canary(self, name: str, version: int, share: float) -> None:
        """Lets a version answer a share of the clients; the newest other one is the stable version.

        Raises:
            UserError: it is not there, or there is no other.
        """
        served = self._models.get(name)
        if served is None:
            raise UserError(f"--canary: no model {name} is served. There are: {', '.join(self._models)}.")
        if version not in served.versions:
            there = ", ".join(map(str, sorted(served.versions))) or "none"
            raise UserError(f"--canary: {name} has no version {version}. It has: {there}.")
        others = [number for number in served.available() if number != version]
        if not others:
            raise UserError(f"--canary: {name} has no version but {version} to answer the other clients.")
        served.canary = Canary(name, version, others[0], share, self._tolerance)

    async def _look(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """Asks the disk, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, question, *arguments)

    async def serve_config(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Serves the models of a models.config, whose folders reloads may then name as well.

        Raises:
            Refusal: it cannot be served; nothing has changed then.
        """
        models = await self._checked(config)
        for model in models.values():
            path = await self._look(model.base_path.resolve)
            # A parent of "/" would open the whole disk to whoever may reload.
            self._roots.add(path.parent if path.parent != Path("/") else path)
        await self._apply(models)

    async def reload(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Serves other models instead, as a client asks; its folders must lie beside those served.

        Raises:
            Refusal: it cannot be served; nothing has changed then.
        """
        models = await self._checked(config)
        for model in models.values():
            path = await self._look(model.base_path.resolve)
            if not any(path.is_relative_to(root) for root in self._roots):
                raise Refusal(
                    "PERMISSION_DENIED",
                    f"The base_path of model {model.name} lies outside the folders this server was given.",
                )
            if not await self._look(path.is_dir):
                raise Refusal("NOT_FOUND", f"The base_path of model {model.name} is not there.")
        self._root = None
        # A client that gives up must not leave a version half loaded.
        await asyncio.shield(asyncio.ensure_future(self._apply(models)))

    async def _checked(self, config: model_server_config_pb2.ModelServerConfig) -> dict[str, Served]:
        if config.WhichOneof("config") != "model_config_list":
            raise invalid("The configuration must be a model_config_list.")
        models: dict[str, Served] = {}
        for entry in config.model_config_list.config:
            if not entry.name:
                raise invalid("A model of the configuration has no name.")
            if entry.name in models:
                raise invalid(f"The configuration names model {entry.name} twice.")
            if entry.model_platform != "tensorflow" and entry.model_type != 1:
                raise invalid(
                    f'The model_platform of model {entry.name} must be "tensorflow". '
                    f'Received: "{entry.model_platform}".'
                )
            if not os.path.isabs(entry.base_path):
                raise invalid(
                    f"The base_path of model {entry.name} must be an absolute path. "
                    f'Received: "{entry.base_path}".'
                )
            models[entry.name] = Served(
                entry.name, Path(entry.base_path), entry.model_version_policy, dict(entry.version_labels)
            )
            models[entry.name].canary = self._canary(models[entry.name])
            await self._look(check_base_path, Path(entry.base_path))
            if not self._allow_unavailable_labels:
                await self._check_labels(models[entry.name])
        return models

    def _canary(self, wanted: Served) -> Canary | None:
        share, version = share_of_labels(wanted.labels)
        if share is None:
            return None
        if STABLE not in wanted.labels:
            raise invalid(f'Model {wanted.name} has a canary with a share, and no version label "{STABLE}".')
        return Canary(wanted.name, version, wanted.labels[STABLE], share, self._tolerance)

    async def _check_labels(self, wanted: Served) -> None:
        try:
            numbers = set(_choose(wanted.policy, await self._look(versions_in, wanted.base_path)))
        except OSError:
            numbers = set()
        for label, number in wanted.labels.items():
            if number not in numbers:
                raise Refusal(
                    "FAILED_PRECONDITION",
                    f'The label "{label}" of model {wanted.name} is for version {number}, which is not '
                    "served; --allow_version_labels_for_unavailable_models accepts that.",
                )

    async def _apply(self, models: dict[str, Served]) -> None:
        async with self._turn:
            for name, wanted in models.items():
                current = self._models.get(name)
                if current is not None and current.base_path == wanted.base_path:
                    wanted.versions = current.versions
                    if current.canary and current.canary.same_as(wanted.canary):
                        wanted.canary = current.canary  # if it was stopped, it stays so
                elif current is not None:
                    # Elsewhere: the same number is another version there.
                    await self._unload([v for v in current.versions.values() if v.model])
                self._models[name] = wanted
            for name, current in self._models.items():
                current.removed = name not in models
        await self.poll()

    # --- The disk ---------------------------------------------------------------------------------

    def start_polling(self) -> None:
        """Looks at the disk from time to time, until closed."""

        async def loop() -> None:
            while True:
                await asyncio.sleep(self._poll_seconds)
                try:
                    await self.poll()
                except Exception:  # the next look may succeed, and must take place
                    log.exception("looking for versions failed")

        if self._poll_seconds > 0:
            self._poller = asyncio.create_task(loop())

    async def poll(self) -> None:
        """Looks at the disk once, and loads and unloads what that asks for."""
        async with self._turn:
            if self._root is not None:
                await self._find_models(self._root)
            for model in list(self._models.values()):
                await self._poll_model(model)

    async def _find_models(self, root: Path) -> None:
        try:
            found = await self._look(models_in, root)
        except OSError as error:
            log.warning("%s cannot be read: %s", root, error.strerror)
            return
        for name, path in found.items():
            if name not in self._models:
                self._models[name] = Served(name, path, Policy(all=Policy.All()))
        for name, model in self._models.items():
            # An empty folder is a model that has lost its versions; one that is gone has been taken away.
            model.removed = name not in found and not await self._look(model.base_path.is_dir)

    async def _poll_model(self, model: Served) -> None:
        try:
            on_disk = {} if model.removed else await self._look(versions_in, model.base_path)
        except OSError as error:
            # A share that is away for a moment takes nothing down.
            log.warning("%s: %s cannot be read: %s", model.name, model.base_path, error.strerror)
            return
        wanted = _choose(model.policy, on_disk)
        for number in wanted:
            await self._announce(model, number, on_disk[number])
        for number in sorted(wanted, reverse=True):
            if model.versions[number].state == State.START:
                await self._load_version(model, model.versions[number])
        if wanted and not any(model.versions[number].model for number in wanted):
            wanted = await self._fall_back(model, wanted, on_disk)
        if not wanted or any(model.versions[number].model for number in wanted):
            await self._unload([v for v in model.versions.values() if v.model and v.number not in wanted])
        _say_where_the_canary_is(model)

    async def _announce(self, model: Served, number: int, path: Path) -> None:
        """Sets a version to be loaded, if it is new, has been away, or is worth another try."""
        version = model.versions.get(number)
        if version is None or (version.state == State.END and version.error is None):
            model.versions[number] = Version(number, path)
        elif version.error is not None:
            changed = await self._look(_fingerprint, path) != version.files
            due = version.tries <= self._retries and time.monotonic() >= version.retry_at
            if changed:
                version.tries = 0
            if changed or due:
                version.state, version.path = State.START, path

    async def _fall_back(self, model: Served, wanted: list[int], on_disk: Mapping[int, Path]) -> list[int]:
        """Serves the newest older version that works, if what was asked for does not.

        So a server that starts beside a broken version serves as one that was running when it came.
        """
        if model.policy.WhichOneof("policy_choice") not in (None, "latest") or model.available():
            return wanted
        for number in sorted(set(on_disk) - set(wanted), reverse=True):
            await self._announce(model, number, on_disk[number])
            if model.versions[number].state == State.START:
                await self._load_version(model, model.versions[number])
            if model.versions[number].model:
                return [*wanted, number]
        return wanted

    async def _load_version(self, model: Served, version: Version) -> None:
        version.state, version.error = State.LOADING, None
        version.tries += 1
        version.files = await self._look(_fingerprint, version.path)
        loop = asyncio.get_running_loop()
        try:
            loaded = await loop.run_in_executor(
                self._thread, self._load, model.name, version.number, version.path
            )
        except Refusal as refusal:
            version.state, version.error = State.END, refusal
            version.retry_at = time.monotonic() + self._retry_seconds
            log.warning("%s version %d is not served: %s", model.name, version.number, refusal.message)
            return
        self._opened(loaded)
        version.state, version.model, version.tries = State.AVAILABLE, loaded, 0
        log.info("%s version %d is served (%.1f s)", model.name, version.number, loaded.seconds)

    async def _unload(self, versions: list[Version]) -> None:
        for version in versions:
            model, version.model = version.model, None
            version.state = State.UNLOADING
            if model is not None:
                await model.drain()
                log.info("%s version %d is no longer served", model.name, version.number)
            del model
            version.state, version.error = State.END, None
        if versions:
            # Loaded models are full of cycles; waiting for the collector would hold two in memory.
            await asyncio.get_running_loop().run_in_executor(self._thread, gc.collect)

    async def close(self) -> None:
        """Stops looking at the disk."""
        if self._poller:
            self._poller.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._disk.shutdown(wait=False, cancel_futures=True)

    # --- Questions --------------------------------------------------------------------------------

    def find(
        self, name: str, version: int | None = None, label: str | None = None, call: Call | None = None
    ) -> Model:
        """Returns the model that answers a request: the newest version, or the one asked for.

        Args:
            name: of the model.
            version, label: that are asked for, if any is.
            call: the request, for a canary to take its share of those that ask for neither.

        Raises:
            Refusal: it is not served.
        """
        served = self._models.get(name)
        if label is not None:
            if served is None or label not in served.labels:
                raise invalid(f'Model {name} has no version label "{label}".')
            version = served.labels[label]
        if served is None or not (available := served.available()):
            raise Refusal("NOT_FOUND", f"Model {name} is not served.")
        number = version
        if number is None:
            number = available[0] if served.canary is None else _split(served.canary, available, call)
        found = served.versions.get(number)
        if found is None or found.model is None:
            raise Refusal("NOT_FOUND", f"Version {number} of model {name} is not served.")
        return found.model

    def status(self, name: str, version: int | None = None) -> list[Version]:
        """Returns a model's versions, the newest first, or the one asked for.

        Raises:
            Refusal: nothing is known of it.
        """
        served = self._models.get(name)
        if served is None or not served.versions:
            raise Refusal("NOT_FOUND", f"Nothing is known of a model {name}.")
        if version is None:
            return [served.versions[number] for number in sorted(served.versions, reverse=True)]
        if version not in served.versions:
            raise Refusal("NOT_FOUND", f"Nothing is known of a version {version} of model {name}.")
        return [served.versions[version]]

    def models(self) -> list[Served]:
        """Returns all models, by name."""
        return [self._models[name] for name in sorted(self._models)]

    def signatures(self) -> Iterator[tuple[str, Signature]]:
        """Every signature that answers, with its model's name."""
        for served in self.models():
            for number in served.available():
                model = served.versions[number].model
                if model is not None:
                    yield from ((served.name, signature) for signature in model.signatures.values())

    def ready(self) -> bool:
        """Whether every model that is asked for has a version that answers."""
        return all(model.available() for model in self._models.values() if not model.removed)


def _split(canary: Canary, available: Sequence[int], call: Call | None) -> int:
    """Returns the version that answers a request which names none."""
    others = [number for number in available if number != canary.version]
    if not others:
        return canary.version
    stable = canary.stable if canary.stable in others else others[0]
    if call is None or canary.stopped or canary.version not in available:
        return stable
    call.canary, call.client_key = canary, call.identify()
    return canary.version if canary.takes(call.client_key) else stable


def _say_where_the_canary_is(model: Served) -> None:
    if model.canary is None or model.canary_gone == (model.canary.version not in model.available()):
        return
    model.canary_gone = not model.canary_gone
    number = model.canary.version
    if model.canary_gone:
        log.warning("%s: the canary, version %d, is not there: stable answers", model.name, number)
    else:
        log.info("%s: the canary, version %d, is there", model.name, number)


def check_base_path(path: Path) -> None:
    """Refuses a folder that is itself a version, in which nobody would find any.

    Raises:
        Refusal: it is one.
    """
    try:
        itself = (path / "saved_model.pb").is_file() and not versions_in(path)
    except OSError:
        return  # what cannot be read is looked at again, and its status says so
    if itself:
        raise invalid(
            f"{path} is itself a version: it holds saved_model.pb; name the folder that holds the versions, "
            f"{path.parent}."
        )


def models_in(root: Path) -> dict[str, Path]:
    """Returns the models of a folder by name; a folder of versions is itself the one model.

    Exports to other formats, which lie beside them, are left out.
    """
    if versions_in(root):
        return {root.absolute().name: root.absolute()}
    return {
        path.name: path
        for path in sorted(root.absolute().iterdir())
        if path.is_dir() and not path.name.startswith(".") and _holds_versions(path)
    }


def _holds_versions(path: Path) -> bool:
    try:
        # One without a saved_model.pb is broken or half written, and its status says so.
        return any(not _other_format(version) for version in versions_in(path).values())
    except OSError:
        return True  # unreadable for now: no reason to take it down


def _other_format(version: Path) -> bool:
    return any((version / name).exists() for name in ("model.tflite", "model.onnx"))


def versions_in(base_path: Path) -> dict[int, Path]:
    """Returns the version folders of a model by number."""
    found = [path for path in base_path.iterdir() if path.name.isascii() and path.name.isdecimal()]
    # A date with its seconds is no version: versions are numbers of 64 bits.
    found = [path for path in found if len(path.name) < 40 and int(path.name) <= _LARGEST_VERSION]
    # Of 3 and 0003 the first is meant.
    return {int(path.name): path for path in sorted(found, key=lambda path: -len(path.name)) if path.is_dir()}


def _choose(policy: Any, on_disk: Mapping[int, Path]) -> list[int]:
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return sorted(on_disk)
    if kind == "specific":
        return [number for number in policy.specific.versions if number in on_disk]
    return sorted(on_disk)[-(policy.latest.num_versions or 1) :]


def _fingerprint(path: Path) -> tuple[object, ...]:
    """Changes when a file of the version is written."""
    found = []
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                status = os.stat(os.path.join(folder, name))
            except OSError:
                continue
            found.append((folder, name, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))
