"""The cases as graphs of TensorFlow 1, in a session. Its CPU kernels take images with the channels last."""

import numpy as np
import tensorflow as tf2
import tensorflow.compat.v1 as tf


class Net:
    """Placeholders with what they are fed, and variables."""

    def __init__(self, feeds, weights):
        self.feeds, self.weights, self.fed = feeds, weights, {}

    def feed(self, name, axes=None):
        """A placeholder for what is fed, its axes put in another order beforehand."""
        array = self.feeds[name]
        if axes is not None:
            array = np.ascontiguousarray(array.transpose(axes))
        placeholder = tf.placeholder(array.dtype, array.shape, name=name)
        self.fed[placeholder] = array
        return placeholder

    def weight(self, name):
        return tf.Variable(self.weights[name], name=name)

    def dense(self, x, layer):
        return tf.matmul(x, self.weight(f"{layer}/weights")) + self.weight(f"{layer}/bias")

    def conv(self, x, layer):
        filters = tf.Variable(self.weights[f"{layer}/filters"].transpose(2, 3, 1, 0))
        return tf.nn.conv2d(x, filters, strides=1, padding="SAME")

    def scaled_norm(self, x, layer):
        return norm(x) * self.weight(f"{layer}/scale") + self.weight(f"{layer}/shift")

    def loss(self, logits):
        labels = self.feed("y")
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        )


CHANNELS_LAST = (0, 2, 3, 1)
CHANNELS_FIRST = (0, 3, 1, 2)


def norm(x):
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-5)


def product(net):
    return tf.reduce_sum(tf.matmul(net.feed("x"), net.weight("w")))


def chain(net):
    x, v = net.feed("x"), net.weight("v")
    return tf.reduce_sum(tf.tanh(tf.nn.relu((x * v + x) * 0.5 - v)))


def logits(net):
    return net.dense(tf.nn.relu(net.dense(net.feed("x"), "dense1")), "dense2")


def convolutions(net):
    def layer(x, name):
        bias = tf.Variable(net.weights[f"{name}/bias"].ravel())
        return tf.nn.relu(tf.nn.bias_add(net.conv(x, name), bias))

    x = layer(net.feed("x", CHANNELS_LAST), "conv1")
    return layer(tf.nn.max_pool2d(x, 2, 2, "VALID"), "conv2")


def classified_convolutions(net):
    x = tf.reshape(convolutions(net), [-1, 14 * 14 * 64])
    weights = net.weights["dense1/weights"].reshape(64, 14, 14, 10).transpose(1, 2, 0, 3)
    weights = tf.Variable(weights.reshape(-1, 10))
    return net.loss(tf.matmul(x, weights) + net.weight("dense1/bias"))


def encoder(net):
    x = net.feed("x")
    heads = tf.reshape(net.dense(x, "attention/in"), [128, 3, 8, 32])
    heads = tf.transpose(heads, [1, 2, 0, 3])
    weights = tf.matmul(heads[0], heads[1], transpose_b=True) * (1 / np.sqrt(32))
    context = tf.matmul(tf.nn.softmax(weights), heads[2])
    context = tf.reshape(tf.transpose(context, [1, 0, 2]), [128, 256])
    x = net.scaled_norm(x + net.dense(context, "attention/out"), "norm1")
    hidden = tf2.nn.gelu(net.dense(x, "hidden"))
    return net.scaled_norm(x + net.dense(hidden, "out"), "norm2")


def residual_block(net):
    def layer(x, name):
        parts = [net.weight(f"{name}/{part}") for part in ("scale", "shift", "mean", "variance")]
        x = net.conv(x, name)
        return tf.nn.fused_batch_norm(x, *parts, epsilon=1e-3, is_training=False)[0]

    x = net.feed("x", CHANNELS_LAST)
    return tf.nn.relu(layer(tf.nn.relu(layer(x, "conv1")), "conv2") + x)


def lstm(net):
    """Unrolled, which takes less time than `tf.raw_ops.BlockLSTMV2`."""

    def layer(x, name):
        driven = net.dense(tf.reshape(x, [-1, 128]), f"{name}/in")
        recurrent = net.weight(f"{name}/recurrent")
        state = cell = tf.zeros([16, 128])
        states = []
        for now in tf.unstack(tf.reshape(driven, [64, 16, 512])):
            i, f, c, o = tf.split(tf.matmul(state, recurrent) + now, 4, axis=1)
            cell = tf.sigmoid(f) * cell + tf.sigmoid(i) * tf.tanh(c)
            state = tf.sigmoid(o) * tf.tanh(cell)
            states.append(state)
        return states

    return layer(tf.stack(layer(net.feed("x"), "lstm1")), "lstm2")[-1]


def embedding_bag(net):
    """The kernel behind `tf.nn.embedding_lookup_sparse`; a lookup with a sum takes longer."""
    indices = tf.reshape(net.feed("indices"), [-1])
    bags = np.repeat(np.arange(64, dtype=np.int32), 32)
    return tf.sparse.segment_sum(net.weight("table"), indices, bags)


CASES = {
    "A": lambda net: net.feed("x") + 1.0,
    "B256": product,
    "B512": product,
    "B1024": product,
    "B2048": product,
    "C": chain,
    "D1": lambda net: tf.nn.softmax(logits(net)),
    "D64": lambda net: tf.nn.softmax(logits(net)),
    "E-sgd": lambda net: net.loss(logits(net)),
    "E-adam": lambda net: net.loss(logits(net)),
    "F": convolutions,
    "G": classified_convolutions,
    "H": encoder,
    "I-norm": lambda net: norm(net.feed("x")),
    "I-softmax": lambda net: tf.nn.softmax(net.feed("x")),
    "K": residual_block,
    "L": lstm,
    "M": embedding_bag,
}

OPTIMIZERS = {
    "E-sgd": lambda: tf.train.GradientDescentOptimizer(0.01),
    "E-adam": lambda: tf.train.AdamOptimizer(1e-3),
    "G": lambda: tf.train.GradientDescentOptimizer(0.01),
}


def prepare(case, feeds, weights):
    """A function that runs the case; None if there is no such case."""
    if case not in CASES:
        return None
    tf.disable_v2_behavior()
    net = Net(feeds, weights)
    fetches = [CASES[case](net)]
    if case in OPTIMIZERS:
        fetches.append(OPTIMIZERS[case]().minimize(fetches[0]))
    config = tf.ConfigProto(intra_op_parallelism_threads=2, inter_op_parallelism_threads=2)
    session = tf.Session(config=config)
    session.run(tf.global_variables_initializer())
    return lambda: session.run(fetches, feed_dict=net.fed)[0]


def in_order(case, result):
    """The result as Convoke orders it."""
    return result.transpose(CHANNELS_FIRST) if case in ("F", "K") else result
