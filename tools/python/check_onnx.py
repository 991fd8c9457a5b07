#!/usr/bin/env python3
"""Exports networks with `pupil export` and runs them with onnxruntime beside Pupil itself.

    python tools/python/check_onnx.py build/pupil
    python tools/python/check_onnx.py build/pupil RN50 convnext_tiny

Without names: every network of `pupil models` up to --largest parameters, with random weights, and
the checkpoints in --weights. Logits of batches of 1 and 3 random images must agree to 1e-4 of the
largest one; of the checkpoints also with --with-preprocess, from 8-bit pixels. Needs onnx,
onnxruntime and numpy.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import zlib

import numpy
import onnx
import onnxruntime

TOLERANCE = 1e-4
# Checkpoints and the networks that they are of.
WEIGHTS = {
    "cifar10_resnet20.safetensors": "resnet20_cifar",
    "resnet56-4bfd9763.th": "resnet56_cifar",
    "cifar10_tiniest.safetensors": "tiniest",
    "cifar10_vit_small_postnorm.safetensors": "vit_postnorm_cifar",
    "efficientnet_lite0_in1k_f16.safetensors": "tf_efficientnet_lite0",
    "efficientnet_lite2_in1k_f16.safetensors": "tf_efficientnet_lite2",
    "squeezenet1_1_in1k.safetensors": "squeezenet1_1.caffe",
    "vit_tiny_patch16_224_in1k.safetensors": "vit_tiny_patch16_224",
}


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"{command[1]} ended with {done.returncode}")
    return done.stdout


def save_safetensors(path, tensors):
    header, at = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            file.write(value.tobytes())


def load_rows(path):  # of a file of `pupil features`
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))["rows"]
        begin, end = entry["data_offsets"]
        file.seek(8 + size + begin)
        return numpy.frombuffer(file.read(end - begin), numpy.float32).reshape(entry["shape"])


def random_weights(tensors, seed):
    """Of a size that keeps activations near 1, so that a wrong layer shows."""
    random, values = numpy.random.default_rng(seed), {}
    for tensor in tensors:
        name, shape = tensor["name"], tensor["shape"]
        if name.endswith("num_batches_tracked"):
            continue
        value = random.standard_normal(shape)
        if name.endswith(("running_var", "input_std")):
            value = 0.5 + random.random(shape)
        elif name.endswith("logit_scale"):
            value = numpy.full(shape, 1.0)
        elif len(shape) >= 2:
            value *= max(numpy.prod(shape[1:]), 1) ** -0.5
        elif name.endswith(("weight", "gamma")):
            value = 1 + 0.2 * value
        else:
            value *= 0.1
        values[name] = value.astype(numpy.float32)
    return values


def difference(ours, theirs):
    if ours.shape != theirs.shape or not numpy.isfinite(theirs).all():
        raise RuntimeError(f"onnxruntime gives {theirs.shape}, pupil {ours.shape}, or no numbers")
    return float(abs(ours - theirs).max() / abs(ours).max())


def check(pupil, name, path, folder, pixels):
    """The largest difference of all batches, the nodes and the operators of the file."""
    out = os.path.join(folder, "net.onnx")
    run(pupil, "export", out, "--model", name, "--weights", path)
    onnx.checker.check_model(out, full_check=True)
    model = onnx.load(out)
    meta = {entry.key: entry.value for entry in model.metadata_props}
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    random = numpy.random.default_rng(zlib.crc32(name.encode()))
    bytes_in = random.integers(0, 256, [3] + shape[1:], numpy.uint8)
    x = bytes_in.astype(numpy.float32) / 255
    if "mean" in meta:
        mean, std = (numpy.float32(meta[k].split()).reshape(1, -1, 1, 1) for k in ("mean", "std"))
        x = (x - mean) / std
    x = numpy.ascontiguousarray(x, numpy.float32)
    numpy.save(os.path.join(folder, "x.npy"), x)
    numpy.save(os.path.join(folder, "y.npy"), numpy.zeros(3, numpy.int64))
    rows = os.path.join(folder, "rows.safetensors")
    run(pupil, "features", "--teacher", f"{name}:{path}", "--out", rows,
        "--data", f"npy:{folder}/x.npy+{folder}/y.npy")
    ours = load_rows(rows)[:, 0]
    feed = session.get_inputs()[0].name
    worst = max(difference(ours[:n], session.run(None, {feed: x[:n]})[0]) for n in (1, 3))
    if pixels:
        run(pupil, "export", out, "--model", name, "--weights", path, "--with-preprocess")
        onnx.checker.check_model(out, full_check=True)
        session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
        theirs = session.run(None, {"pixels": bytes_in.transpose(0, 2, 3, 1)})[0]
        worst = max(worst, difference(ours, theirs))
    return worst, model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pupil", help="the program")
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks of pupil models")
    here = os.path.dirname(os.path.abspath(__file__))
    shared = os.environ.get("PUPIL_SHARED", os.path.join(here, "..", "..", "..", "shared"))
    parser.add_argument("--weights", default=os.path.join(shared, "data", "weights"),
                        help="a folder with real checkpoints (default: the shared data, if there)")
    parser.add_argument("--largest", type=int, default=30_000_000, help="parameters (default %(default)s)")
    a = parser.parse_args()
    pupil = os.path.abspath(a.pupil)
    jobs, bad = [], 0
    known = {m["name"]: m["parameters"] for m in json.loads(run(pupil, "models", "--json"))}
    for name in a.names or [n for n, size in known.items() if size <= a.largest]:
        jobs.append((name, None))
    for file, name in WEIGHTS.items():
        path = os.path.join(a.weights, file)
        if (not a.names or name in a.names) and os.path.exists(path):
            jobs.append((name, path))
    print(f"{'network':44} {'weights':44} {'nodes':>5}  difference")
    for name, path in jobs:
        with tempfile.TemporaryDirectory() as folder:
            try:
                real = path
                if not path:
                    path = os.path.join(folder, "random.safetensors")
                    tensors = json.loads(run(pupil, "models", name, "--json"))["tensors"]
                    save_safetensors(path, random_weights(tensors, zlib.crc32(name.encode())))
                worst, model = check(pupil, name, path, folder, pixels=bool(real))
                said = f"{len(model.graph.node):5}  {worst:.1e}"
                if worst > TOLERANCE:
                    bad += 1
                    said += "  TOO LARGE"
            except Exception as error:  # one network must not hide the others
                bad += 1
                said = f"{'':5}  FAILED: {str(error).splitlines()[0]}"
            print(f"{name:44} {os.path.basename(real) if real else 'random':44} {said}", flush=True)
    print(f"{len(jobs) - bad} of {len(jobs)} agree to {TOLERANCE} of the largest logit "
          f"(onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
