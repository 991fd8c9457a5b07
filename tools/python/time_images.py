"""Photographs to the normalised tensors of a network of 224 pixels: Pupil beside Pillow.

1,000 JPEGs of 640 x 480 pixels, resized (bilinear, shorter side 256), cropped, normalised, on as many
threads as Pupil has workers. Pupil's time is that of `pupil features` with a network of one layer,
about a quarter of its processor time, which counts against Pupil; the photographs lie in the page
cache for both.
"""

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

NETWORK = "vit(dim=8,depth=1,heads=1,patch=224,image=224)"
INPUT = "RGB/255, mean 0.485 0.456 0.406 std 0.229 0.224 0.225, 224x224, bilinear, crop 0.875"


def make_photographs(folder, count):
    generator = np.random.default_rng(0)
    os.makedirs(os.path.join(folder, "a"))
    for i in range(count):
        coarse = generator.integers(0, 256, (12, 16, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.BICUBIC), np.int16)
        image = image + generator.integers(-12, 13, image.shape, np.int16)
        path = os.path.join(folder, "a", f"{i:04}.jpg")
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def make_network(path):
    shapes = {"cls_token": (1, 1, 8), "pos_embed": (1, 2, 8), "patch_embed.proj.weight": (8, 3, 224, 224),
              "patch_embed.proj.bias": (8,), "norm.weight": (8,), "norm.bias": (8,), "head.weight": (1, 8),
              "head.bias": (1,)}
    for part, shape in {"norm1": (8,), "norm2": (8,), "attn.qkv": (24, 8), "attn.proj": (8, 8),
                        "mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}.items():
        shapes[f"blocks.0.{part}.weight"] = shape
        shapes[f"blocks.0.{part}.bias"] = shape[:1]
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path,
              {"model": NETWORK, "input": INPUT})


MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def with_pillow(path, draft=False):
    image = Image.open(path)
    if draft:  # libjpeg's scaled decoding: other pixels
        image.draft("RGB", (256, 256))
    image = image.convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    x = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    return np.ascontiguousarray(((x / 255 - MEAN) / STD).transpose(2, 0, 1))


def seconds_of_pillow(paths, threads, draft=False):
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda p: with_pillow(p, draft), paths):
            pass
    return time.perf_counter() - begin


def seconds_of_pupil(program, network, folder, threads):
    out = subprocess.run(
        [program, "features", "--teacher", network, "--data", "folder:" + folder, "--workers",
         str(threads), "--batch", "32", "--threads", "1", "--out", network + ".rows"],
        capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    os.remove(network + ".rows")
    return float(re.search(r"([\d.]+) s$", out.stdout.strip()).group(1))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("program", help="the built pupil")
    arguments.add_argument("--count", type=int, default=1000)
    a = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photographs, network = os.path.join(folder, "photographs"), os.path.join(folder, "n.safetensors")
        make_photographs(photographs, a.count)
        make_network(network)
        paths = sorted(os.path.join(photographs, "a", n) for n in os.listdir(os.path.join(photographs, "a")))
        print(f"{a.count} JPEGs of 640 x 480, best of 3, images/s")
        print(f"{'threads':>8}{'Pupil':>10}{'Pillow':>10}{'ratio':>8}{'Pillow, draft':>15}")
        slower = False
        for threads in sorted({1, os.cpu_count()}):
            pupil = pillow = draft = float("inf")
            for _ in range(3):  # taking turns
                pupil = min(pupil, seconds_of_pupil(a.program, network, photographs, threads))
                pillow = min(pillow, seconds_of_pillow(paths, threads))
                draft = min(draft, seconds_of_pillow(paths, threads, True))
            slower |= pupil > pillow
            print(f"{threads:>8}{a.count / pupil:>10.0f}{a.count / pillow:>10.0f}{pillow / pupil:>8.2f}"
                  f"{a.count / draft:>15.0f}", flush=True)
    sys.exit(slower)


if __name__ == "__main__":
    main()
