"""A finished training run as a policy bundle: two graphs, manifest, card."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from robotd.policy.bundle import DETOKENIZER, MANIFEST, POLICY, Bundle, Manifest, sha256
from robotd.sim.arms import JOINTS
from robotd_policies.card import CARD, card
from robotd_policies.policy import BundlePolicy, ExportedPolicy
from robotd_policies.provenance import provenance
from robotd_policies.rollout import EXECUTION_HORIZON, HORIZON, PERIOD_S, Observation
from robotd_policies.tokenizers.graph import OPSET
from robotd_policies.train import Trainer


def export(trainer: Trainer, folder: Path, results: dict[str, Any]) -> Bundle:
    """Write the bundle of a training run; replaces the files of one that is there.

    Raises ValueError when the exported policy answers differently from the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = ExportedPolicy(trainer.average, trainer.normaliser, trainer.tokenizer).eval()
    _export_policy(module, folder / POLICY)
    joints = len(JOINTS)
    decoder = trainer.tokenizer.to_onnx(state_size=2 * joints, reference_at=joints)
    onnx.save(decoder, folder / DETOKENIZER)
    manifest = _manifest(trainer, folder, results)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    (folder / CARD).write_text(card(manifest))
    bundle = Bundle.load(folder)
    _compare(module, trainer, folder)
    return bundle


def _export_policy(module: ExportedPolicy, path: Path) -> None:
    config = module.net.config
    side = config.image_size
    images = [torch.zeros(side, side, 3, dtype=torch.uint8) for _ in config.cameras]
    names = [f"image_{camera}" for camera in config.cameras]
    module.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / POLICY
        torch.onnx.export(
            module,
            (images, torch.zeros(config.state_size)),
            raw,
            input_names=[*names, "state"],
            output_names=["tokens"],
            opset_version=max(OPSET, 18),  # the exporter's own smallest
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        model = onnx.load(raw)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # where in the source a node came from: only weight
        node.ClearField("doc_string")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _manifest(trainer: Trainer, folder: Path, results: dict[str, Any]) -> Manifest:
    config = trainer.config
    tokenizer = trainer.tokenizer
    made = {
        "task": config.task,
        "samples": [
            {key: about[key] for key in _SAMPLE_FACTS if key in about}
            for about in trainer.samples.about
        ],
        "training": {
            **vars(config),
            "steps_done": trainer.steps_before + trainer.step,
            "minutes": round(trainer.seconds / 60, 1),
            "rounds": trainer.history,
            "commands": trainer.commands,
        },
        "export": provenance(),
        "tokenizer": {"scheme": tokenizer.scheme, **tokenizer.fields()},
    }
    fields = {
        "format": 1,
        "name": f"{config.arm}_{config.task}",
        "arm": config.arm,
        "joints": list(JOINTS),
        "state": {"parts": ["position", "applied"]},
        "images": [
            {
                "camera": camera,
                "width": trainer.net.config.image_size,
                "height": trainer.net.config.image_size,
            }
            for camera in trainer.net.config.cameras
        ],
        "action_horizon": HORIZON,
        "execution_horizon": EXECUTION_HORIZON,
        "step_period_s": PERIOD_S,
        "tokens": {
            "scheme": tokenizer.scheme,
            "count": tokenizer.count,
            "vocabulary": tokenizer.vocabulary,
        },
        "generation": "parallel",
        "files": {name: sha256(folder / name) for name in (POLICY, DETOKENIZER)},
        "provenance": made,
        "results": results,
    }
    return Manifest.model_validate_json(json.dumps(fields))


_SAMPLE_FACTS = ("command", "code", "date", "seeds", "episodes", "successes", "samples")


def _compare(module: ExportedPolicy, trainer: Trainer, folder: Path, count: int = 16) -> None:
    """The graph must answer like the network on training pictures (ties and rounding aside)."""
    policy = BundlePolicy(folder)
    cameras = module.net.config.cameras
    rows = np.linspace(0, len(trainer.samples) - 1, count).astype(np.int64)
    pictures = {camera: trainer.samples.images(camera, rows) for camera in cameras}
    differing = 0
    for at, row in enumerate(rows):
        images = {camera: pictures[camera][at] for camera in cameras}
        state = trainer.samples.state[row]
        with torch.no_grad():
            tensors = [torch.from_numpy(images[camera]) for camera in cameras]
            expected = module(tensors, torch.from_numpy(state)).numpy()
        differing += int((policy.tokens(Observation(images, state)) != expected).sum())
    if differing > 0.01 * count * trainer.tokenizer.count:
        raise ValueError(f"{folder / POLICY}: {differing} tokens differ from the network's")


def inference_ms(folder: Path, runs: int = 200) -> float:
    """Median time of one answer of `policy.onnx` on one thread."""
    import time

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / POLICY, options, ["CPUExecutionProvider"])
    feed = {
        put.name: np.zeros(put.shape, np.uint8 if "uint8" in put.type else np.float32)
        for put in session.get_inputs()
    }
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - began)
    return float(np.median(times) * 1e3)
