"""Golden values of the packed weight formats.

Needs `gguf numpy safetensors ml_dtypes` from PyPI, and the path of llama.cpp's `libggml-base.so` (the npm package
`@node-llama-cpp/linux-x64` has it). Writes beside itself:

formats.safetensors
  `<format>.blocks`  u8 [8, bytes of a row]   random blocks: every bit pattern of quants and sub-scales, finite scales
  `<format>.values`  f32 [8, 512]             what the gguf package dequantises them to
  `fp8.blocks`, `fp8.values`                  all numbers of e4m3 by ml_dtypes
  `weights`          f32 [12, 1024]           rows to quantise: normal, heavy-tailed, uniform, shifted, with outliers
errors.json
  mean squared error of `weights` after llama.cpp's reference quantiser, by format
"""

import ctypes
import json
import pathlib
import sys

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
FORMATS = {
    "q8_0": Type.Q8_0,
    "q4_0": Type.Q4_0,
    "q4_1": Type.Q4_1,
    "q5_0": Type.Q5_0,
    "q5_1": Type.Q5_1,
    "q4_k": Type.Q4_K,
    "q5_k": Type.Q5_K,
    "q6_k": Type.Q6_K,
}
# Bytes of a block at which f16 scales stand.
SCALES = {"q4_1": [0, 2], "q5_1": [0, 2], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208]}
ROWS, COLS = 8, 512


def random_blocks(rng, name):
    weights, size = gguf.GGML_QUANT_SIZES[FORMATS[name]]
    blocks = rng.integers(0, 256, (ROWS, COLS // weights, size), dtype=np.uint8)
    for at in SCALES.get(name, [0]):
        scales = rng.normal(0, 0.05, blocks.shape[:2]).astype(np.float16)
        scales[0, 0] = 0.0
        scales[1, 0] = np.float16(6e-8)  # the smallest subnormal
        scales[2, 0] = np.float16(-65504)
        blocks[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(ROWS, -1)


def weights(rng):
    shape = (2, 1024)
    normal = rng.normal(0, 0.02, shape)
    tails = rng.standard_t(3, shape) * 0.01
    uniform = rng.uniform(-0.05, 0.05, shape)
    shifted = rng.normal(0.03, 0.02, shape)
    outliers = rng.normal(0, 0.02, shape) * np.where(rng.random(shape) < 0.01, 12, 1)
    columns = rng.normal(0, 0.02, shape) * np.exp(rng.normal(0, 0.7, 1024))
    return np.concatenate([normal, tails, uniform, shifted, outliers, columns]).astype(np.float32)


def main():
    ggml = ctypes.CDLL(sys.argv[1])
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    rng = np.random.default_rng(11)
    tensors, errors = {}, {}
    source = weights(rng)
    for name, kind in FORMATS.items():
        blocks = random_blocks(rng, name)
        tensors[f"{name}.blocks"] = blocks
        tensors[f"{name}.values"] = gguf.dequantize(blocks, kind).astype(np.float32)
        per, size = gguf.GGML_QUANT_SIZES[kind]
        packed = np.zeros((len(source), source.shape[1] // per * size), np.uint8)
        written = ggml.ggml_quantize_chunk(
            int(kind), source.ctypes.data, packed.ctypes.data, 0, len(source), source.shape[1], None
        )
        assert written == packed.nbytes
        back = gguf.dequantize(packed, kind)
        errors[name] = float(np.mean((back.astype(np.float64) - source) ** 2))
    numbers = np.array([b for b in range(256) if b & 0x7F != 0x7F], np.uint8)
    tensors["fp8.blocks"] = numbers
    tensors["fp8.values"] = numbers.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    tensors["weights"] = source
    save_file(tensors, HERE / "formats.safetensors")
    (HERE / "errors.json").write_text(json.dumps(errors, indent=1) + "\n")


main()
