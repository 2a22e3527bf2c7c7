"""Which versions of a model are served, written to a models.config: a stable one, and a canary beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.config import model_server_config_pb2

from karpa_tf.errors import UserError, write_whole
from karpa_tf.serving.canary import CANARY, STABLE, label_of_share
from karpa_tf.serving.config_files import read_models
from karpa_tf.serving.options import RolloutOptions


def roll_out(folder: Path, options: RolloutOptions) -> dict[str, Any]:
    """Writes which versions of a model are served, and under which labels; other models stay as they are.

    Args:
        folder: of the versions.
        options: which ones, and the file.

    Returns:
        The file's path, the model, and the versions by label.

    Raises:
        UserError: a version is not there, the canary's signatures are not the stable one's, there is no
            canary to promote or to take back, or a file cannot be read or written.
    """
    file = Path(options.config or folder.parent / "models.config")
    config = read_models(str(file)) if file.exists() else model_server_config_pb2.ModelServerConfig()
    name = options.name or folder.name
    entry = next((one for one in config.model_config_list.config if one.name == name), None)
    before = dict(entry.version_labels) if entry else {}
    labels = _labels(before, options, name, file)
    for version in labels.values():
        if not (folder / str(version) / "saved_model.pb").is_file():
            found = sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal())
            there = ", ".join(map(str, found)) or "none"
            raise UserError(f"{folder} has no version {version}. It has: {there}.")
    if CANARY in labels:
        check_signatures(folder / str(labels[STABLE]), folder / str(labels[CANARY]))
    if entry is None:
        entry = config.model_config_list.config.add(name=name, base_path=str(folder.resolve()))
    entry.model_platform = "tensorflow"
    entry.model_version_policy.specific.ClearField("versions")
    entry.model_version_policy.specific.versions.extend(sorted(set(labels.values())))
    entry.ClearField("version_labels")
    entry.version_labels.update(labels)
    write_whole(file, text_format.MessageToString(config).encode())
    return {"config": str(file), "model": name, "labels": labels, "before": before}


def _labels(before: Mapping[str, int], options: RolloutOptions, name: str, file: Path) -> dict[str, int]:
    if options.promote or options.rollback:
        if CANARY not in before:
            raise UserError(f"{file} has no canary of {name}: begin one with --stable N --canary M.")
        return {STABLE: before[CANARY if options.promote else STABLE]}
    stable = options.stable or before.get(STABLE, 0)
    if not stable:
        raise UserError(f"{file} has no stable version of {name} yet: say which one with --stable N.")
    canary = options.canary or (before.get(CANARY, 0) if options.share else 0)
    if canary == stable:
        raise UserError(f"--canary must be another version than the stable one. Received: {stable} for both.")
    if options.share and not canary:
        raise UserError(f"--share is a canary's: {file} has none of {name}; give one with --canary N.")
    share = {label_of_share(options.share): canary} if options.share else {}
    return {STABLE: stable, **({CANARY: canary} if canary else {}), **share}


def check_signatures(stable: Path, canary: Path) -> None:
    """Raises a UserError where a version does not take and give what another one does.

    It may give more: further outputs, and longer rows of one, as of probabilities when a label was learned.
    """
    old, new = _signatures(stable), _signatures(canary)
    if missing := sorted({*old} - {*new}):
        raise UserError(
            f"{canary} has no signature {missing[0]}, which {stable} has: its clients would fail."
        )
    for key, (inputs, outputs) in sorted(old.items()):
        for what, ours, theirs in (("inputs", inputs, new[key][0]), ("outputs", outputs, new[key][1])):
            names = {*ours, *theirs} if what == "inputs" else {*ours}
            for name in sorted(names):
                longer = what == "outputs" and name in theirs and _is_longer(theirs[name], ours[name])
                if ours.get(name) != theirs.get(name) and not longer:
                    raise UserError(
                        f"{canary} differs from {stable} in the {what} of {key}: {name} is "
                        f"{theirs.get(name, 'not there')} and was {ours.get(name, 'not there')}."
                    )


def _is_longer(new: str, old: str) -> bool:
    """Whether two tensors differ in nothing but a last size, which has grown."""
    (before, _, size), (old_before, _, old_size) = new.rpartition(", "), old.rpartition(", ")
    sizes = size.rstrip("]"), old_size.rstrip("]")
    return before == old_before and all(map(str.isdecimal, sizes)) and int(sizes[0]) > int(sizes[1])


def _signatures(version: Path) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Returns types and shapes of the inputs and the outputs of each signature of a SavedModel."""
    from tensorflow.core.framework import types_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((version / "saved_model.pb").read_bytes())
    except (OSError, DecodeError):
        raise UserError(f"{version}/saved_model.pb cannot be read: it is no SavedModel.") from None

    def tensors(infos: Mapping[str, Any]) -> dict[str, str]:
        found = {}
        for name, info in infos.items():
            sizes = ["?" if dim.size < 0 else str(dim.size) for dim in info.tensor_shape.dim]
            kind = types_pb2.DataType.Name(info.dtype).removeprefix("DT_").lower()
            found[name] = f"{kind} [{'...' if info.tensor_shape.unknown_rank else ', '.join(sizes)}]"
        return found

    return {
        key: (tensors(signature.inputs), tensors(signature.outputs))
        for graph in saved.meta_graphs
        if "serve" in graph.meta_info_def.tags
        for key, signature in graph.signature_def.items()
        if key != "__saved_model_init_op"
    }
