"""Bundles: what is accepted, and the one clear line that each kind of damage gets."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from robotd.config import JOINTS
from robotd.errors import BundleError
from robotd.policy.bundle import DETOKENIZER, MANIFEST, POLICY, Bundle
from robotd.policy.check import check_bundle, open_checked
from robotd.policy.session import Detokenizer, PolicySession
from tests.bundles import BINS, SHIFT, detokenizer_graph, joint_ends, make_bundle, rehash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def test_a_good_bundle_passes_every_check(folder: Path) -> None:
    report = check_bundle(folder, "so101", JOINTS, (0.0, 100.0))
    assert report.name == "tiny"
    assert report.digest == Bundle.load(folder).digest
    assert report.warnings == []
    assert len(report.checks) == 4
    assert json.dumps(report.to_dict())


def test_the_policy_answers_with_the_bin_of_position_and_shift(folder: Path) -> None:
    checked = open_checked(folder)
    state = np.zeros(12, np.float32)
    state[5] = 50
    white = {
        image.camera: np.full((image.height, image.width, 3), 255, np.uint8)
        for image in checked.bundle.manifest.images
    }
    tokens = checked.policy.act(white, state)
    low, high = joint_ends(6)
    expected = np.floor((state[:6] + SHIFT - low) / ((high - low) / BINS))
    assert tokens.tolist() == expected.tolist()
    actions, valid = checked.detokenizer.decode(tokens, state)
    assert valid
    assert np.allclose(actions[-1], state[:6] + SHIFT, atol=(200 / BINS) / 2 + 1e-3)
    assert np.abs(actions[0] - state[:6]).max() <= SHIFT / 16 + 0.1


def test_first_id_shifts_the_vocabulary(tmp_path: Path) -> None:
    checked = open_checked(make_bundle(tmp_path / "b", first_id=1000))
    tokens = np.full(6, 1000, np.int64)
    assert checked.detokenizer.decode(tokens, np.zeros(12, np.float32))[1]
    assert not checked.detokenizer.decode(tokens - 1, np.zeros(12, np.float32))[1]


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)


def _no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def _garbage_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\x00\xff garbage")


def _huge_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b" " * (1 << 21))


def _missing_graph(folder: Path) -> None:
    (folder / POLICY).unlink()


def _folder_as_graph(folder: Path) -> None:
    (folder / POLICY).unlink()
    (folder / POLICY).mkdir()


def _changed_graph(folder: Path) -> None:
    with (folder / DETOKENIZER).open("ab") as file:
        file.write(b"\x00")


def _corrupt_graph(folder: Path) -> None:
    data = bytearray((folder / POLICY).read_bytes())
    data[20:400] = bytes(380)
    (folder / POLICY).write_bytes(data)
    rehash(folder)


def _truncated_graph(folder: Path) -> None:
    (folder / DETOKENIZER).write_bytes((folder / DETOKENIZER).read_bytes()[:100])
    rehash(folder)


def _swapped_graphs(folder: Path) -> None:
    policy, detokenizer = (folder / POLICY).read_bytes(), (folder / DETOKENIZER).read_bytes()
    (folder / POLICY).write_bytes(detokenizer)
    (folder / DETOKENIZER).write_bytes(policy)
    rehash(folder)


def _edit(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | changes))

    return spoil


def _wrong_horizon(folder: Path) -> None:
    onnx.save(detokenizer_graph(15, *joint_ends(6)), folder / DETOKENIZER)
    rehash(folder)


def _blind_detokenizer(folder: Path) -> None:
    """A detokenizer that calls everything valid."""
    model = onnx.load(folder / DETOKENIZER)
    for node in model.graph.node:
        if node.op_type == "Cast" and node.output[0] == "as_numbers":
            node.input[0] = "truth"
    always = helper.make_tensor("truth", TensorProto.BOOL, [6], [True] * 6)
    model.graph.initializer.append(always)
    onnx.save(model, folder / DETOKENIZER)
    rehash(folder)


def _zero_detokenizer(folder: Path) -> None:
    """A detokenizer that calls nothing valid."""
    model = onnx.load(folder / DETOKENIZER)
    for node in model.graph.node:
        if node.op_type == "Cast" and node.output[0] == "as_numbers":
            node.input[0] = "lie"
    never = helper.make_tensor("lie", TensorProto.BOOL, [6], [False] * 6)
    model.graph.initializer.append(never)
    onnx.save(model, folder / DETOKENIZER)
    rehash(folder)


def _wide_detokenizer(folder: Path) -> None:
    """Targets beyond the range, called valid."""
    low, high = joint_ends(6)
    onnx.save(detokenizer_graph(16, low, high * 2), folder / DETOKENIZER)
    rehash(folder)


def _ids_outside(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["tokens"]["vocabulary"] = 100
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_empty, "bundle.json: cannot be read"),
        (_no_manifest, "bundle.json: cannot be read"),
        (_garbage_manifest, "bundle.json: manifest: Invalid JSON"),
        (_huge_manifest, "too many for a manifest"),
        (_missing_graph, "policy.onnx: is missing"),
        (_folder_as_graph, "policy.onnx: cannot be read"),
        (_changed_graph, "detokenizer.onnx: does not match its hash"),
        (_corrupt_graph, "policy.onnx: is no usable ONNX graph"),
        (_truncated_graph, "detokenizer.onnx: is no usable ONNX graph"),
        (_swapped_graphs, "policy.onnx: has no input 'image_front'"),
        (_edit(format=2), "bundle.json: format"),
        (_edit(surprise=1), "bundle.json: surprise"),
        (_edit(execution_horizon=17), "execution_horizon 17 is longer"),
        (_edit(files={}), "no hash for policy.onnx"),
        (_edit(state={"parts": ["position"]}), "input is state tensor(float)[12]"),
        (_edit(images=[]), "has input 'image_front', which the manifest does not know"),
        (_wrong_horizon, "output is actions tensor(float)[15, 6]"),
        (_blind_detokenizer, "calls id -1 at position 0 valid"),
        (_zero_detokenizer, "refuses the policy's own tokens"),
        (_wide_detokenizer, "leaves its range"),
        (_ids_outside, "allowed are 0..99"),
    ],
)
def test_damage_gets_one_clear_line(
    folder: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(folder)
    with pytest.raises(BundleError) as caught:
        check_bundle(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_outside_the_folder_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../secret"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not a plain file name"):
        Bundle.load(folder)


def test_a_bundle_for_another_arm_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="made for arm 'so101', this arm is 'koch'"):
        check_bundle(folder, "koch")
    with pytest.raises(BundleError, match="moves joints shoulder_pan"):
        check_bundle(folder, joints=JOINTS[:5])
    with pytest.raises(BundleError, match=r"uses gripper range 0\.\.100"):
        check_bundle(folder, gripper_range=(-100.0, 100.0))
    with pytest.raises(BundleError, match=r"needs camera wrist; configured: front"):
        Bundle.load(folder).require_fit(cameras=["front"])


def test_a_failing_graph_is_a_bundle_error(folder: Path) -> None:
    bundle = Bundle.load(folder)
    with pytest.raises(BundleError, match="failed while running"):
        Detokenizer(bundle).decode(np.zeros(5, np.int64), np.zeros(12, np.float32))
    wrong = {
        image.camera: np.zeros((image.width, image.height, 4), np.uint8)
        for image in bundle.manifest.images
    }
    session = PolicySession(bundle)
    with pytest.raises(BundleError, match="failed while running"):
        session.act(wrong, np.zeros(12, np.float32))


def test_a_policy_slower_than_its_chunk_is_warned_about(tmp_path: Path) -> None:
    slow = make_bundle(
        tmp_path / "slow",
        work=200,
        horizon=2,
        execution_horizon=1,
        step_period_s=0.0011,
    )
    assert "pause between chunks" in check_bundle(slow).warnings[0]
