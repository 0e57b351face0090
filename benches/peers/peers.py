"""Times one case on ONNX Runtime or on a session of TensorFlow 1, with two threads.

Usage: peers.py DIR CASE ort|tf SECONDS. DIR has feeds.safetensors and weights.safetensors; the first result is
written to result.safetensors there. Prints {"median_us": ..}, or {} if the peer does not have the case.
"""

import json
import statistics
import sys
import time

import numpy as np
from safetensors.numpy import load_file, save_file


def measure(run, seconds, directory):
    first = np.asarray(run(), dtype=np.float32)
    save_file({"result": np.atleast_1d(np.ascontiguousarray(first))}, f"{directory}/result.safetensors")
    run()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < seconds:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def onnx_model(case, feeds, weights):
    """A model whose input is `x` and whose output is `y`; None if it has no such case."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(op, inputs, **attributes):
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def weight(name):
        return constant(name, weights[name])

    def dense(x, layer):
        product = add("MatMul", [x, weight(f"{layer}/weights")])
        return add("Add", [product, weight(f"{layer}/bias")])

    def norm(x, width, scale=None, shift=None):
        scale = scale or constant(f"scale{len(nodes)}", np.ones(width, np.float32))
        shift = shift or constant(f"shift{len(nodes)}", np.zeros(width, np.float32))
        return add("LayerNormalization", [x, scale, shift], axis=-1, epsilon=1e-5)

    if case == "A":
        y = add("Add", ["x", constant("one", np.float32(1))])
    elif case == "C":
        v = weight("v")
        product = add("Add", [add("Mul", ["x", v]), "x"])
        halved = add("Mul", [product, constant("half", np.float32(0.5))])
        y = add("Tanh", [add("Relu", [add("Sub", [halved, v])])])
        y = add("ReduceSum", [y], keepdims=0)
    elif case in ("D1", "D64"):
        y = add("Softmax", [dense(add("Relu", [dense("x", "dense1")]), "dense2")], axis=-1)
    elif case == "H":
        shape = constant("shape", np.array([128, 3, 8, 32], np.int64))
        heads = add("Reshape", [dense("x", "attention/in"), shape])
        heads = add("Transpose", [heads], perm=[1, 2, 0, 3])
        parts = [
            add("Gather", [heads, constant(f"at{i}", np.int64(i))], axis=0) for i in range(3)
        ]
        scores = add("MatMul", [parts[0], add("Transpose", [parts[1]], perm=[0, 2, 1])])
        scores = add("Mul", [scores, constant("scale", np.float32(1 / np.sqrt(32)))])
        context = add("MatMul", [add("Softmax", [scores], axis=-1), parts[2]])
        context = add("Transpose", [context], perm=[1, 0, 2])
        context = add("Reshape", [context, constant("flat", np.array([128, 256], np.int64))])
        x = norm(add("Add", ["x", dense(context, "attention/out")]), 256)
        hidden = add("Gelu", [dense(x, "hidden")])
        y = norm(add("Add", [x, dense(hidden, "out")]), 256)
    elif case == "I-norm":
        y = norm("x", 1024)
    elif case == "I-softmax":
        y = add("Softmax", ["x"], axis=-1)
    else:
        return None
    nodes[-1].output[0] = "y"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, feeds["x"].shape)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, case, [x], [out], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def on_ort(case, feeds, weights):
    import onnxruntime as ort

    model = onnx_model(case, feeds, weights)
    if model is None:
        return None
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": feeds["x"]})[0]


def on_tf(case, feeds, weights):
    import tensorflow as tf2
    import tensorflow.compat.v1 as tf

    tf.disable_v2_behavior()
    x = tf.placeholder(tf.float32, feeds["x"].shape, name="x")
    fed, train = {x: feeds["x"]}, None

    def weight(name):
        return tf.Variable(weights[name], name=name)

    def dense(x, layer):
        return tf.matmul(x, weight(f"{layer}/weights")) + weight(f"{layer}/bias")

    def norm(x):
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-5)

    def scaled(x, layer):
        return norm(x) * weight(f"{layer}/scale") + weight(f"{layer}/shift")

    if case == "A":
        y = x + 1.0
    elif case == "C":
        v = weight("v")
        y = tf.reduce_sum(tf.tanh(tf.nn.relu((x * v + x) * 0.5 - v)))
    elif case in ("D1", "D64"):
        y = tf.nn.softmax(dense(tf.nn.relu(dense(x, "dense1")), "dense2"))
    elif case in ("E-sgd", "E-adam"):
        labels = tf.placeholder(tf.int32, feeds["y"].shape, name="y")
        fed[labels] = feeds["y"].astype(np.int32)
        logits = dense(tf.nn.relu(dense(x, "dense1")), "dense2")
        y = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        )
        optimizer = (
            tf.train.GradientDescentOptimizer(0.01)
            if case == "E-sgd"
            else tf.train.AdamOptimizer(1e-3)
        )
        train = optimizer.minimize(y)
    elif case == "H":
        heads = tf.reshape(dense(x, "attention/in"), [128, 3, 8, 32])
        heads = tf.transpose(heads, [1, 2, 0, 3])
        weights_of = tf.matmul(heads[0], heads[1], transpose_b=True) * (1 / np.sqrt(32))
        context = tf.matmul(tf.nn.softmax(weights_of), heads[2])
        context = tf.reshape(tf.transpose(context, [1, 0, 2]), [128, 256])
        x1 = scaled(x + dense(context, "attention/out"), "norm1")
        hidden = tf2.nn.gelu(dense(x1, "hidden"))
        y = scaled(x1 + dense(hidden, "out"), "norm2")
    elif case == "I-norm":
        y = norm(x)
    elif case == "I-softmax":
        y = tf.nn.softmax(x)
    else:
        return None
    config = tf.ConfigProto(intra_op_parallelism_threads=2, inter_op_parallelism_threads=2)
    session = tf.Session(config=config)
    session.run(tf.global_variables_initializer())
    fetches = [y] if train is None else [y, train]
    return lambda: session.run(fetches, feed_dict=fed)[0]


def main():
    directory, case, peer, seconds = sys.argv[1:]
    feeds = load_file(f"{directory}/feeds.safetensors")
    weights = load_file(f"{directory}/weights.safetensors")
    run = {"ort": on_ort, "tf": on_tf}[peer](case, feeds, weights)
    print(json.dumps({} if run is None else {"median_us": measure(run, float(seconds), directory)}))


if __name__ == "__main__":
    main()
