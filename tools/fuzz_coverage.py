"""The share of each reader's branches that were taken: tools/fuzz.sh --coverage, which pipes the output
of llvm-cov export into this."""

import collections
import json
import re
import sys

READERS = {
    "safetensors": ["data/safetensors.cc"],
    "names and values": ["data/stored.cc"],
    "index of shards": ["data/open.cc"],
    "pickle": ["data/pickle.cc"],
    "PyTorch": ["data/pth.cc"],
    "zip": ["data/zip.cc"],
    "npy, npz": ["data/npy.cc"],
    "images": ["data/image.cc"],
    "idx": ["data/idx.cc", "data/gzip.cc"],
    "CIFAR": ["data/cifar.cc"],
    "TOML": ["tools/toml_fields.cc", "tools/toml_fields.h", "tools/config.cc", "tools/transmiter_config.cc"],
    "cases": ["tools/verify/case.cc"],
}
# Functions in these files that read no content: of writers, of folders; GzipFile's constructor, whose
# branches are errors of the operating system, and its rest(), which reads vocabularies.
OTHERS = re.compile("[wW]rite|save|to_toml|npy_head|read_npy_rows|find_images|find_files|weights_in|"
                    "add_settings|GzipFile(C|4rest)")
LIMIT = 90


def main():
    data = json.load(sys.stdin)["data"][0]
    missed_too = "--missed" in sys.argv
    unread = collections.defaultdict(list)
    for function in data["functions"]:
        if OTHERS.search(function["name"]):
            begin, _, end = function["regions"][0][:3]
            unread[function["filenames"][0]].append((begin, end))
    failed = False
    print(f"{'reader':20}{'branches':>10}{'taken':>8}")
    for reader, names in READERS.items():
        taken = collections.Counter()
        for file in data["files"]:
            path = file["filename"]
            if not path.endswith(tuple("/" + name for name in names)):
                continue
            with open(path) as source:
                text = [""] + source.read().split("\n")
            for line, column, _, _, yes, no, *_ in file["branches"]:
                if "if constexpr" in text[line]:  # decided by the compiler
                    continue
                if not any(begin <= line <= end for begin, end in unread[path]):
                    taken[path, line, column, True] += yes
                    taken[path, line, column, False] += no
        share = 100 * sum(count > 0 for count in taken.values()) / max(len(taken), 1)
        failed |= share < LIMIT
        print(f"{reader:20}{len(taken):>10}{share:>6.1f} %")
        if missed_too:
            for (path, line, column, way), count in sorted(taken.items()):
                if not count:
                    print(f"    {path}:{line}:{column} is never {str(way).lower()}")
    sys.exit(failed)


main()
