"""ONNX Runtime: the operators LSTM, GRU and RNN of a model with nothing else in it."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession, OrtValue, SessionOptions

from benchmarks.cases import GATES, Case
from benchmarks.layers.layer import FORWARD, STEP, AbstractLayer, Work, carried
from benchmarks.measure import Contestant
from benchmarks.report import cores

OPSET, FORMAT = 22, 10  # versions that every ONNX Runtime of the last years can read


class OnnxRuntime(AbstractLayer):
    """No gradients. Time first: the only layout that its CPU operators have. Results stay in its own memory, uncopied.

    So does the state from one step to the next.
    """

    peer = "onnxruntime"
    package = "onnxruntime"
    directions = FORWARD, STEP

    def names(self) -> Mapping[str, str]:
        return {"LSTM": "LSTM", "GRU": "GRU", "Elman": "RNN"}

    def prepare(self, work: Work) -> Contestant:
        name = self.names()[work.case.cell]
        fields = ["h", "c"][: len(work.state)]
        session = InferenceSession(model(name, fields, work.case), options(), providers=["CPUExecutionProvider"])
        given = {"xs": work.xs.swapaxes(0, 1)} | {
            f"{field}_before": array[None] for field, array in zip(fields, work.state, strict=True)
        }
        values = {key: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for key, array in given.items()}
        if work.direction == FORWARD:
            return Contestant(name, lambda: session.run_with_ort_values(["ys", *fields], values))
        before = [f"{field}_before" for field in fields]

        def step(state: Any) -> Any:
            return session.run_with_ort_values(fields, {"xs": values["xs"]} | dict(zip(before, state, strict=True)))

        return Contestant(name, carried(step, [values[field] for field in before]))


def options() -> SessionOptions:
    """As many threads as the others have; they spin while a model runs, and no longer, or they slow whoever is next."""
    made = SessionOptions()
    made.intra_op_num_threads = cores()
    made.inter_op_num_threads = 1
    made.add_session_config_entry("session.force_spinning_stop", "1")
    return made


def model(name: str, fields: list[str], case: Case) -> bytes:
    """A model of one operator with random weights; `fields` are those of the state, of which there is one `_before`."""
    before = [f"{field}_before" for field in fields]
    after_product: dict[str, Any] = {"linear_before_reset": 1} if name == "GRU" else {}  # as torch has it
    node = helper.make_node(
        name, ["xs", "W", "R", "b", "", *before], ["ys", *fields], hidden_size=case.H, **after_product
    )
    random, rows = np.random.default_rng(1), GATES[case.cell] * case.H
    shapes = {"W": (1, rows, case.I), "R": (1, rows, case.H), "b": (1, 2 * rows)}
    weights = {key: random.uniform(-1, 1, shape) / np.sqrt(case.H) for key, shape in shapes.items()}
    graph = helper.make_graph(
        [node],
        name,
        [described("xs", case.T, case.B, case.I), *(described(field, 1, case.B, case.H) for field in before)],
        [described("ys", case.T, 1, case.B, case.H), *(described(field, 1, case.B, case.H) for field in fields)],
        [numpy_helper.from_array(array.astype(np.float32), key) for key, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=FORMAT)
    return made.SerializeToString()


def described(name: str, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
