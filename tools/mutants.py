"""Mutation testing of tensor/ops and methods; see mutants.sh, which builds what this needs."""
import argparse
import concurrent.futures
import dataclasses
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

BUILD = Path("build-test").resolve()
ROOT = Path.cwd()
# In the order in which they are asked, quick ones first. {samples}: those of the changed file.
TESTS = ["op_suite_test --gtest_filter={samples}", "ops_test", "nn_test", "methods_test", "aft_test",
         "explain_test", "core_test", "linalg_test", "op_suite_test", "verify_test",
         "transmiter_test", "identify_test"]
OTHER_OPERATOR = {"+": "-", "-": "+", "+=": "-=", "-=": "+=",  # sign
                  "*": "/", "/": "*",  # factor
                  "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",  # bound
                  "&&": "||", "||": "&&"}
OTHER_INDEX = {"i": "j", "j": "i", "m": "n", "n": "m", "rows": "columns", "columns": "rows",
               "row": "column", "column": "row"}
SAMPLES = re.compile(r"PUPIL_SAMPLES|_samples\(")


@dataclasses.dataclass
class Mutant:
    kind: str
    file: Path
    begin: int  # in the file's text
    end: int
    new: str

    def text(self):
        source = self.file.read_text()
        return source[:self.begin] + self.new + source[self.end:]

    def __str__(self):
        source = self.file.read_text()
        line = source.count("\n", 0, self.begin) + 1
        row = source[source.rfind("\n", 0, self.begin) + 1:source.find("\n", self.begin)]
        old = source[self.begin:self.end]
        return f"{self.file}:{line}: {self.kind}: {old!r} becomes {self.new!r} in\n    {row.strip()}"


def code_of(path):
    """The text with comments, strings, preprocessor lines and samples blanked, length unchanged."""
    text = path.read_text()
    blank = lambda m: re.sub(r"[^\n]", " ", m.group())
    text = re.sub(r'//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\])\'', blank, text)
    text = re.sub(r"^#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)
    text = re.sub(r"^\s*template <[^\n]*|\bstatic_assert\([^;]*;", blank, text, flags=re.M)
    samples = SAMPLES.search(text)
    return text[:samples.start()] if samples else text


def sites(path):
    code = code_of(path)
    for m in re.finditer(r" ([-+*/]|[-+]=|[<>]=?|[!=]=|&&|\|\|) ", code):
        op = m.group(1)
        kind = "factor" if op in "*/" else "sign" if op[0] in "+-" else "bound"
        yield Mutant(kind, path, m.start(1), m.end(1), OTHER_OPERATOR[op])
    for m in re.finditer(r"(?<![\w.<])(\d+)(\.\d*(?:e-?\d+)?f?|e-?\d+f?)?(?![\w.])(?!>)", code):
        new = f"{int(m.group(1)) + 1}{m.group(2) or ''}"
        yield Mutant("factor" if m.group(2) else "bound", path, m.start(), m.end(), new)
    # A whole statement that assigns, adds or calls, on one line.
    for m in re.finditer(r"(?<=[;{})]\n)[ ]+([\w.\[\]>()-]+(?: [-+*/]?= [^;\n]*|\([^;\n]*\)));(?=\n)", code):
        if not re.match(r"return\b|using\b|throw\b", m.group(1)):
            yield Mutant("dropped term", path, m.start(1), m.end(1), "")
    for m in re.finditer(r"[(\[, ](\w+)(?=[\]),; ])", code):
        if m.group(1) in OTHER_INDEX:
            yield Mutant("swapped index", path, m.start(1), m.end(1), OTHER_INDEX[m.group(1)])
    for m in re.finditer(r"(?<=\()(\w[\w.]*), (\w[\w.]*)(?=[,)])", code):
        if m.group(1) != m.group(2):
            yield Mutant("swapped index", path, m.start(), m.end(), f"{m.group(2)}, {m.group(1)}")


def objects_of(path, depth=0):
    """The .cc files that a change of this file reaches, those of the tests that are asked too."""
    if path.suffix == ".cc":
        asked = path.parent != Path("tests") or any(t.split()[0] == path.stem for t in TESTS)
        return {path} if asked else set()
    folders = ("tensor", "tensor/ops", "autograd", "nn", "methods", "tests")
    users = [p for folder in folders for p in Path(folder).glob("*.[ch]*")
             if re.search(rf'#include "([^"\n]*/)?{path.name}"', p.read_text())]
    return set().union(*(objects_of(p, depth + 1) for p in users)) if depth < 3 else set()


def object_name(source):
    """Its path in the test build."""
    if source.parent == Path("tests"):
        return f"tests/CMakeFiles/{source.stem}.dir/{source.name}.o"
    return f"CMakeFiles/pupil_objects.dir/{source}.o"


class Bench:
    """Compiles and links a mutant beside the test build."""

    def __init__(self):
        self.commands, self.originals, self.sound = {}, {}, set()
        self.one_at_a_time = threading.Lock()

    def ninja(self, target):
        if target not in self.commands:
            out = subprocess.run(["ninja", "-C", BUILD, "-t", "commands", "-s", target],
                                 capture_output=True, text=True, check=True).stdout
            self.commands[target] = out.strip().splitlines()[-1]
        return self.commands[target]

    def compile(self, source, tree, out):
        """Whether `source` compiles, as it is in `tree`; where that lies does not show in `out`."""
        name = object_name(source)
        command = self.ninja(name).replace(str(ROOT / source), str(tree / source))
        command = re.sub(r"-M[DTF]\S* ?\S*\.o(\.d)? |-MD |-Werror |ccache ", "", command)
        command = command.replace(f"-o {name}", f"-o {out}").replace(f"-I{ROOT}", f"-I{tree}")
        command = command.replace("-O2", "-O1") + f" -frandom-seed=0 -ffile-prefix-map={tree}={ROOT}"
        return not subprocess.run(shlex.split(command), cwd=BUILD, capture_output=True).returncode

    def original(self, source, folder):
        """What the compiler makes of the unchanged file."""
        if source not in self.originals:
            out = Path(folder) / f"original.{source.name}.o"
            if not self.compile(source, ROOT, out):
                sys.exit(f"{source} does not compile")
            self.originals[source] = out.read_bytes()
        return self.originals[source]

    def tree_in(self, folder):
        """A copy of the project made of links."""
        tree = Path(folder) / "tree"
        for part in ("tensor", "autograd", "nn", "data", "models", "methods", "tools", "tests"):
            shutil.copytree(part, tree / part, copy_function=lambda a, b: os.symlink(ROOT / a, b))
        (tree / "build").mkdir()
        return tree

    def try_mutant(self, mutant):
        """The test that noticed it, "" when none did, None when it does not compile or to the same
        machine code (so code behind an #if that is off here, and other changes that change nothing)."""
        with tempfile.TemporaryDirectory(prefix="mutant") as folder:
            tree = self.tree_in(folder)
            (tree / mutant.file).unlink()
            (tree / mutant.file).write_text(mutant.text())
            objects, samples = {}, set()
            for source in objects_of(mutant.file):
                out = Path(folder) / f"{source.name}.o"
                if not self.compile(source, tree, out):
                    return None
                if out.read_bytes() == self.original(source, folder):
                    continue
                objects[object_name(source)] = out
                samples |= set(re.findall(r"PUPIL_SAMPLES\((\w+)\)", source.read_text()))
            if not objects:
                return None
            for test in TESTS:
                if "{samples}" in test and not samples:
                    continue
                program, *arguments = test.format(samples=":".join(f"*/{s}" for s in samples)).split()
                if not self.passes(program, arguments, objects, folder):
                    self.require_sound(program)
                    return program
        return ""

    def require_sound(self, test):
        """What fails without a change too has noticed nothing."""
        with self.one_at_a_time:
            if test in self.sound:
                return
            with tempfile.TemporaryDirectory(prefix="unchanged") as folder:
                self.tree_in(folder)
                if not self.passes(test, [], {}, folder):
                    sys.exit(f"{test} fails without any change; see what it says in {BUILD}")
            self.sound.add(test)

    def link(self, target, objects, folder):
        """The path of this program, made with these objects in place of those of the build, in a
        place from where it finds the files that belong to it."""
        binary = f"{folder}/tree/build/{Path(target).name}"
        if not os.path.exists(binary):
            command = self.ninja(target).replace(f"-o {target}", f"-o {binary}")
            for old, new in objects.items():
                command = command.replace(f" {old} ", f" {new} ")
            subprocess.run(command, shell=True, cwd=BUILD, check=True, capture_output=True)
        return binary

    def passes(self, test, arguments, objects, folder):
        binary = self.link(f"tests/{test}", objects, folder)
        program = ""
        if re.search(r'"program.h"|PUPIL_PROGRAM', Path(f"tests/{test}.cc").read_text()):
            program = self.link("pupil", objects, folder)
        environment = {"PUPIL_SHARED": str(ROOT.parent / "shared"), **os.environ,
                       "PUPIL_SOURCE": str(ROOT), "PUPIL_PROGRAM": program,
                       "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "TMPDIR": folder}
        run = subprocess.Popen([binary, "--gtest_brief=1", "--gtest_fail_fast", *arguments],
                               env=environment, cwd=folder, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return run.wait(timeout=300) == 0
        except subprocess.TimeoutExpired:  # one that never ends is noticed too
            os.killpg(run.pid, signal.SIGKILL)  # with the programs that it started
            run.wait()
            return False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="mutants to try")
    parser.add_argument("--seed", type=int, default=1, help="of the draw")
    parser.add_argument("--at-least", type=float, default=95, help="percent that must be noticed")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--files", default="", help="only files whose path contains this")
    a = parser.parse_args()

    # Kinds in turn, so that the many numbers do not crowd out the few signs.
    by_kind = {}
    for folder in ("tensor/ops", "methods"):
        for path in sorted(Path(folder).iterdir()):
            if path.suffix in (".cc", ".h") and a.files in str(path) and objects_of(path):
                for mutant in sites(path):
                    by_kind.setdefault(mutant.kind, []).append(mutant)
    draw = random.Random(a.seed)
    for mutants in by_kind.values():
        draw.shuffle(mutants)
    order = [m for round in range(a.count) for m in
             (mutants[round] for mutants in by_kind.values() if round < len(mutants))]

    bench, tried, noticed, survivors, skipped = Bench(), 0, 0, [], 0
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        waiting, queue = {}, iter(order)
        while True:
            while tried + len(waiting) < a.count and (mutant := next(queue, None)):
                waiting[pool.submit(bench.try_mutant, mutant)] = mutant
            if not waiting:
                break
            done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                mutant, test = waiting.pop(future), future.result()
                if test is None:
                    skipped += 1
                    continue
                tried += 1
                noticed += bool(test)
                if not test:
                    survivors.append(mutant)
                print(f"{test or 'SURVIVED':16} {mutant}", flush=True)
    print(f"\n{tried} mutants (seed {a.seed}), {noticed} noticed: {100 * noticed / max(tried, 1):.1f} %; "
          f"{skipped} more do not compile or change no machine code. Survivors:")
    for mutant in survivors:
        print(mutant)
    sys.exit(not tried or noticed < a.at_least / 100 * tried)


if __name__ == "__main__":
    main()
