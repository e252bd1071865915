"""TensorProto against TensorFlow's own writer and reader, for every dtype."""

from __future__ import annotations

import numpy as np
import pytest

from homeostat.serving.grpc import tensorproto
from homeostat.serving.protos import message
from tests.bundles import ONNX_TYPES
from tests.unit.serving.test_grpc import extreme


@pytest.mark.parametrize("dtype", ONNX_TYPES)
def test_tensorflow_reads_what_we_write_and_we_read_what_it_writes(dtype: str) -> None:
    import tensorflow as tf

    values = extreme(dtype)
    ours = tensorproto.encode(values)
    theirs = tf.make_ndarray(type(tf.make_tensor_proto(0.0)).FromString(ours.SerializeToString()))
    np.testing.assert_array_equal(theirs, values, strict=True)
    for written in (tf.make_tensor_proto(values), tf.make_tensor_proto(values.ravel()[:1], shape=[2, 2])):
        read = tensorproto.decode(message("tensorflow.TensorProto").FromString(written.SerializeToString()), "x")
        np.testing.assert_array_equal(read, tf.make_ndarray(written), strict=True)
