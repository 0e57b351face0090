"""The cases as ONNX models on ONNX Runtime."""

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


class Model:
    """Nodes and constants of a model. What adds to it gives the name of a result."""

    def __init__(self, weights):
        self.weights, self.nodes, self.constants = weights, [], []

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op, inputs, output=0, **attributes):
        """`output` tells which of the operation's results is used."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [""] * output + [name], **attributes))
        return name

    def weight(self, name):
        return self.constant(self.weights[name])

    def dense(self, x, layer):
        product = self.add("MatMul", [x, self.weight(f"{layer}/weights")])
        return self.add("Add", [product, self.weight(f"{layer}/bias")])

    def conv(self, x, layer):
        inputs = [x, self.weight(f"{layer}/filters")]
        if f"{layer}/bias" in self.weights:
            inputs.append(self.constant(self.weights[f"{layer}/bias"].ravel()))
        return self.add("Conv", inputs, auto_pad="SAME_UPPER")

    def norm(self, x, width):
        scale = self.constant(np.ones(width, np.float32))
        shift = self.constant(np.zeros(width, np.float32))
        return self.add("LayerNormalization", [x, scale, shift], axis=-1, epsilon=1e-5)

    def finished(self, feeds, result):
        kinds = {name: helper.np_dtype_to_tensor_dtype(x.dtype) for name, x in feeds.items()}
        inputs = [helper.make_tensor_value_info(n, kinds[n], x.shape) for n, x in feeds.items()]
        output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "case", inputs, [output], self.constants)
        opset = [helper.make_opsetid("", 20)]
        return helper.make_model(graph, opset_imports=opset, ir_version=10)


def scalar_add(m):
    return m.add("Add", ["x", m.constant(np.float32(1))])


def product(m):
    return m.add("ReduceSum", [m.add("MatMul", ["x", m.weight("w")])], keepdims=0)


def chain(m):
    v = m.weight("v")
    both = m.add("Add", [m.add("Mul", ["x", v]), "x"])
    halved = m.add("Mul", [both, m.constant(np.float32(0.5))])
    y = m.add("Tanh", [m.add("Relu", [m.add("Sub", [halved, v])])])
    return m.add("ReduceSum", [y], keepdims=0)


def mlp(m):
    hidden = m.add("Relu", [m.dense("x", "dense1")])
    return m.add("Softmax", [m.dense(hidden, "dense2")], axis=-1)


def convolutions(m):
    x = m.add("Relu", [m.conv("x", "conv1")])
    x = m.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    return m.add("Relu", [m.conv(x, "conv2")])


def encoder(m):
    shape = m.constant(np.array([128, 3, 8, 32], np.int64))
    heads = m.add("Reshape", [m.dense("x", "attention/in"), shape])
    heads = m.add("Transpose", [heads], perm=[1, 2, 0, 3])
    parts = [m.add("Gather", [heads, m.constant(np.int64(i))], axis=0) for i in range(3)]
    scores = m.add("MatMul", [parts[0], m.add("Transpose", [parts[1]], perm=[0, 2, 1])])
    scores = m.add("Mul", [scores, m.constant(np.float32(1 / np.sqrt(32)))])
    context = m.add("MatMul", [m.add("Softmax", [scores], axis=-1), parts[2]])
    context = m.add("Transpose", [context], perm=[1, 0, 2])
    context = m.add("Reshape", [context, m.constant(np.array([128, 256], np.int64))])
    x = m.norm(m.add("Add", ["x", m.dense(context, "attention/out")]), 256)
    hidden = m.add("Gelu", [m.dense(x, "hidden")])
    return m.norm(m.add("Add", [x, m.dense(hidden, "out")]), 256)


def residual_block(m):
    def layer(x, name):
        norm = [m.weight(f"{name}/{part}") for part in ("scale", "shift", "mean", "variance")]
        return m.add("BatchNormalization", [m.conv(x, name), *norm], epsilon=1e-3)

    inside = m.add("Relu", [layer("x", "conv1")])
    return m.add("Relu", [m.add("Add", [layer(inside, "conv2"), "x"])])


def lstm(m):
    def gates(name):
        """ONNX has the gates in the order input, output, forget, cell."""
        i, f, c, o = np.split(m.weights[name], 4, axis=-1)
        return np.concatenate([i, o, f, c], axis=-1).T[np.newaxis]

    def layer(x, name, output):
        bias = gates(f"{name}/in/bias")
        parts = [gates(f"{name}/in/weights"), gates(f"{name}/recurrent")]
        parts.append(np.concatenate([bias, np.zeros_like(bias)], axis=-1))
        inputs = [x, *map(m.constant, parts)]
        return m.add("LSTM", inputs, output, hidden_size=128)

    states = layer("x", "lstm1", output=0)
    states = m.add("Squeeze", [states, m.constant(np.array([1], np.int64))])
    return layer(states, "lstm2", output=1)


def embedding_bag(m):
    rows = m.add("Gather", [m.weight("table"), "indices"], axis=0)
    return m.add("ReduceSum", [rows, m.constant(np.array([1], np.int64))], keepdims=0)


CASES = {
    "A": scalar_add,
    "B256": product,
    "B512": product,
    "B1024": product,
    "B2048": product,
    "C": chain,
    "D1": mlp,
    "D64": mlp,
    "F": convolutions,
    "H": encoder,
    "I-norm": lambda m: m.norm("x", 1024),
    "I-softmax": lambda m: m.add("Softmax", ["x"], axis=-1),
    "K": residual_block,
    "L": lstm,
    "M": embedding_bag,
}


def prepare(case, feeds, weights):
    """A function that runs the case; None if there is no such case. The runtime does not train."""
    if case not in CASES:
        return None
    model = Model(weights)
    model = model.finished(feeds, CASES[case](model))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, feeds)[0]


def in_order(_case, result):
    """The result as Convoke orders it."""
    return result
