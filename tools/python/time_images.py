"""Photographs to normalised tensors of 224 pixels: Pupil beside Pillow.

1,000 JPEGs of 640 x 480 pixels, resized (bilinear, shorter side 256), cropped, normalised, on as many
threads: `pupil bench jpeg_224`, which writes the photographs, and Pillow on the same files. They lie in
the page cache for both.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

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


def seconds_of_pupil(program, folder, count, threads):
    out = subprocess.run(
        [program, "bench", "jpeg_224", "--initial", folder, "--batch", str(count), "--steps", "1",
         "--threads", str(threads), "--json"], capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    return count / json.loads(out.stdout)[0]["images_per_s"]["median"]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("program", help="the built pupil")
    arguments.add_argument("--count", type=int, default=1000)
    a = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{a.count} JPEGs of 640 x 480, best of 3, images/s")
        print(f"{'threads':>8}{'Pupil':>10}{'Pillow':>10}{'ratio':>8}{'Pillow, draft':>15}")
        slower = False
        for threads in sorted({1, os.cpu_count()}):
            pupil = pillow = draft = float("inf")
            for _ in range(3):  # taking turns
                pupil = min(pupil, seconds_of_pupil(a.program, folder, a.count, threads))
                paths = sorted(str(p) for p in pathlib.Path(folder).rglob("*.jpg"))
                pillow = min(pillow, seconds_of_pillow(paths, threads))
                draft = min(draft, seconds_of_pillow(paths, threads, True))
            slower |= pupil > pillow
            print(f"{threads:>8}{a.count / pupil:>10.0f}{a.count / pillow:>10.0f}{pillow / pupil:>8.2f}"
                  f"{a.count / draft:>15.0f}", flush=True)
    sys.exit(slower)


if __name__ == "__main__":
    main()
