#!/usr/bin/env python3
"""pupil bench against PyTorch on the same jobs, round after round so that a slow phase of the machine
hits all candidates alike. Run it with a Python that has torch:

    python tools/bench/compare_torch.py build/pupil --rounds 3

With oneDNN 3.x in place of the distribution's, which takes a build of its own:

    python -m venv onednn3 && onednn3/bin/pip install onednn-cpu-gomp onednn-devel-cpu-gomp
    cmake -B build-onednn3 -DCMAKE_PREFIX_PATH=$PWD/onednn3 && cmake --build build-onednn3
    python tools/bench/compare_torch.py build-onednn3/pupil

Candidates: pupil; torch tuned (channels-last, set_num_threads, bound threads, malloc that keeps its
memory); the same with torch.compile, for forward passes alone with frozen weights, which folds
norms; for forward passes also onnxruntime with the file that `pupil export` writes, where it is
installed. All start from the weights and images that `pupil bench --initial` writes, and where the loss
of step 1 differs by more than 1e-5, or that of step 100 (of the last, where fewer are run; of step 3
at 224 pixels, whose 16 images are learnt by heart within ten steps, while roundings grow) by more
than 1e-2 of itself, there is no ratio. Prints images/s (median over rounds of the median over steps)
and pupil's ratio to the better torch, peak resident memory and the seconds from the start of the
process to the end of the first step. With --threads 1 it also prints images per CPU second, which
other load on the machine hardly changes.

With --bf16 both keep f32 weights and compute in bf16: torch under autocast, a forward pass alone in a
network turned to bf16; the losses may then differ by 1e-2 of themselves at step 1 and by 1e-1 later.
Needs torch, safetensors and, for ResNet-18 and MobileNetV2, torchvision.
"""
import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

WORKLOADS = ["resnet20_c10_train", "kd_resnet56_resnet20_train", "vit_tiny4_32_train",
             "aft_vit_tiny4_32_train", "aft_loss", "resnet18_224_train", "vit_tiny16_224_train",
             "mobilenetv2_224_train", "resnet20_c10_infer", "vit_tiny4_32_infer",
             "resnet18_224_infer", "vit_tiny16_224_infer", "mobilenetv2_224_infer",
             "vit_base16_224_infer"]


def sizes(workload):
    """Batch, side of the images, classes, side of a transformer's patches."""
    return (16, 224, 1000, 16) if "_224_" in workload else (128, 32, 10, 4)


def steps_of(workload, steps):
    """How many are timed: the loss alone is short."""
    return 10 * steps if workload == "aft_loss" else steps


TUNED = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000",
         "MALLOC_TOP_PAD_": "268435456"}
WARM_UP = 3


def age():
    """Seconds since this process was started."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def timed(step, batch, steps):
    """Runs a job's steps, each of which gives its loss, and prints what it has measured."""
    losses, times, cpu, first = [], [], 0.0, None
    for i in range(WARM_UP + steps):
        before, start = time.process_time(), time.perf_counter()
        losses.append(step())
        first = first or age()
        if i >= WARM_UP:
            times.append(time.perf_counter() - start)
            cpu += time.process_time() - before
    print(json.dumps({"images_per_s": batch / statistics.median(times), "losses": losses,
                      "per_cpu_s": batch * steps / cpu, "first_step_s": first,
                      "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def onnx_job(workload, path, threads, steps, initial):
    import numpy
    import onnxruntime
    from safetensors.numpy import load_file
    given = load_file(initial)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: given["images"]}
    rows = numpy.arange(len(given["labels"]))

    def step():
        logits = session.run(None, feed)[0]
        top = logits.max(1, keepdims=True)
        log_p = logits - top - numpy.log(numpy.exp(logits - top).sum(1, keepdims=True))
        return -float(log_p[rows, given["labels"]].mean())

    timed(step, sizes(workload)[0], steps)


def load_initial(module, path, prefix):
    """Parameters and buffers by name or, where a library has other names, in their order."""
    from safetensors import safe_open
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    order = [name for name in header
             if name.startswith(prefix) and not name.startswith(prefix + "loss.")]
    state = module.state_dict()
    with safe_open(path, "pt") as file:
        given = {name[len(prefix):]: file.get_tensor(name) for name in order}
    if set(given) != set(state):
        given = dict(zip(state, given.values(), strict=True))
    module.load_state_dict(given)


def torch_job(workload, compiled, threads, steps, initial, bf16):
    import torch
    import torch._inductor.config
    import torch.nn as nn
    import torch.nn.functional as F
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch, image, classes, patch = sizes(workload)

    class Block(nn.Module):  # option A shortcut
        def __init__(self, cin, cout, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(cout)
            self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(cout)
            self.pad = (cout - cin) // 2 if stride != 1 or cin != cout else 0

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
            if self.pad:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            y += x
            return F.relu(y, inplace=True)

    class CifarResNet(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            cin = 16
            for stage, cout in enumerate((16, 32, 64)):
                blocks = []
                for i in range((depth - 2) // 6):
                    blocks.append(Block(cin, cout, 2 if i == 0 and cout > 16 else 1))
                    cin = cout
                setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            self.linear = nn.Linear(64, classes)

        def forward(self, x):
            x = F.relu(self.bn1(self.conv1(x)), inplace=True)
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(x.mean((2, 3)))

    class Attention(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

        def forward(self, x):
            b, n, d = x.shape
            q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(
                2, 0, 3, 1, 4).unbind(0)
            return self.proj(
                F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))

    class Mlp(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

        def forward(self, x):
            return self.fc2(F.gelu(self.fc1(x)))

    class VitBlock(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
            self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), Mlp(dim)

        def forward(self, x):
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class PatchEmbed(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.proj = nn.Conv2d(3, dim, patch, patch)

        def forward(self, x):
            return self.proj(x).flatten(2).transpose(1, 2)

    class Vit(nn.Module):
        def __init__(self, dim=192, depth=12, heads=3):
            super().__init__()
            self.patch_embed = PatchEmbed(dim)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.pos_embed = nn.Parameter(torch.zeros(1, (image // patch)**2 + 1, dim))
            self.blocks = nn.Sequential(*[VitBlock(dim, heads) for _ in range(depth)])
            self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)

        def forward(self, x):
            x = self.patch_embed(x)
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
            features = self.norm(self.blocks(x)[:, 0])
            return self.head(features), features

    def network():
        if "vit" in workload:
            return Vit(768, 12, 12) if "base" in workload else Vit()
        if "resnet20" in workload:
            return CifarResNet(20)
        import torchvision
        if "resnet18" in workload:
            return torchvision.models.resnet18(num_classes=classes)
        return torchvision.models.mobilenet_v2(num_classes=classes, dropout=0)

    def gram(x):
        x = x - x.mean(0, keepdim=True)
        x = x / (x.norm(dim=1, keepdim=True) + 1e-8)
        return x @ x.t()

    if workload == "aft_loss":
        return aft_loss(torch.compile(gram) if compiled else gram, steps, initial)
    layout = torch.channels_last
    from safetensors.torch import load_file
    given = load_file(initial)
    images, labels = given["images"].contiguous(memory_format=layout), given["labels"]
    vit = "vit" in workload
    student = network()
    load_initial(student, initial, "student.")
    student = student.to(memory_format=layout)
    groups = [{"params": list(student.parameters())}]
    teacher = None
    if workload.startswith("kd"):
        teacher = CifarResNet(56).eval()
        load_initial(teacher, initial, "teacher.")
        teacher = teacher.to(memory_format=layout)
    forward_alone = workload.endswith("infer")
    if forward_alone:
        student.eval().requires_grad_(False)
        if bf16:
            student, images = student.bfloat16(), images.bfloat16()
        torch._inductor.config.freezing = True
    if workload.startswith("aft"):
        stored = given["stored"]
        scores = torch.zeros(stored.shape[1], requires_grad=True)
        groups.append({"params": [scores], "lr": 1e-2, "weight_decay": 0})
    optimizer = torch.optim.SGD(groups, 0.05, 0.9, weight_decay=1e-4)
    if compiled:
        student = torch.compile(student)
        teacher = torch.compile(teacher) if teacher is not None else None

    def step():
        if forward_alone:
            with torch.no_grad():
                out = student(images)
                return F.cross_entropy((out[0] if vit else out).float(), labels).item()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = student(images)
        out = tuple(o.float() for o in out) if vit else out.float()
        logits = out[0] if vit else out
        loss = F.cross_entropy(logits, labels)
        if teacher is not None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                target = teacher(images).float()
            loss = 0.1 * loss + 0.9 * 16 * F.kl_div(
                F.log_softmax(logits / 4, 1), F.softmax(target / 4, 1), reduction="batchmean")
        if workload.startswith("aft"):
            difference = gram(out[1]) - gram(stored * scores.sigmoid())
            loss = loss + 10 * (difference.square().mean() + 1e-8).sqrt()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    timed(step, batch, steps)


def aft_loss(gram, steps, initial):
    """The AFT loss alone, composed of PyTorch's operations, forward and backward."""
    import torch
    batch = sizes("aft_loss")[0]
    from safetensors.torch import load_file
    given = load_file(initial)
    phi, psi = given["phi"].requires_grad_(), given["psi"]
    s = torch.zeros(3200, requires_grad=True)

    def step():
        phi.grad = s.grad = None
        difference = gram(phi) - gram(psi * s.sigmoid())
        loss = 10 * (difference.square().mean() + 1e-8).sqrt()
        loss.backward()
        return loss.item()

    timed(step, batch, steps_of("aft_loss", steps))


def export(workload, a, initial, path):
    """The network of a forward job as an ONNX file."""
    from safetensors.numpy import load_file, save_file
    listed = subprocess.run([a.pupil, "bench", "--json"], check=True, stdout=subprocess.PIPE).stdout
    model = {job["workload"]: job["model"] for job in json.loads(listed)}[workload]
    weights = path + ".safetensors"
    save_file({name[len("student."):]: value for name, value in load_file(initial).items()
               if name.startswith("student.")}, weights)
    subprocess.run([a.pupil, "export", path, "--model", model, "--weights", weights], check=True,
                   stdout=subprocess.DEVNULL)


def run_onnx(workload, a, initial, path):
    command = [sys.executable, __file__, "--onnx-job", workload, "--onnx-file", path, "--threads",
               str(a.threads), "--steps", str(a.steps), "--initial", initial]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def run_torch(workload, compiled, a, initial):
    env = {**os.environ, **TUNED}
    if a.threads > 1:
        env["OMP_PROC_BIND"] = "true"
    command = [sys.executable, __file__, "--torch-job", workload, "--threads", str(a.threads),
               "--steps", str(a.steps), "--initial", initial] + [
                   *(["--compiled"] if compiled else []), *(["--bf16"] if a.bf16 else [])]
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def run_pupil(workload, a, initial=None):
    batch = sizes(workload)[0]

    def once(steps):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run([a.pupil, "bench", workload, "--json", "--batch", str(batch),
                              "--steps", str(steps), "--threads", str(a.threads),
                              "--dtype", "bf16" if a.bf16 else "f32",
                              *(["--initial", initial] if initial else [])],
                             check=True, stdout=subprocess.PIPE, text=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return json.loads(out)[0], (after.ru_utime + after.ru_stime - before.ru_utime -
                                    before.ru_stime)

    if initial:
        return once(1)
    result, cpu = once(a.steps)
    _, start_up = once(1)  # start-up, warm-up and one step
    return {"images_per_s": result["images_per_s"]["median"], "losses": result["losses"],
            "per_cpu_s": batch * steps_of(workload, a.steps - 1) / (cpu - start_up),
            "first_step_s": result["first_step_s"], "peak_rss_bytes": result["peak_rss_bytes"]}


def difference(workload, results, bf16):
    """What the losses differ in, or nothing."""
    count = min(3 if "_224_" in workload else 100, *(len(r["losses"]) for r in results.values()))
    for step, most in ((1, 1e-2), (count, 1e-1)) if bf16 else ((1, 1e-5), (count, 1e-2)):
        ours = results["pupil"]["losses"][step - 1]
        for who, r in results.items():
            theirs = r["losses"][step - 1]
            if not abs(ours - theirs) <= most * abs(theirs):  # NaN differs
                return f"loss of step {step}: pupil {ours:.7g}, {who} {theirs:.7g}"
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pupil", nargs="?", help="the pupil program")
    parser.add_argument("workloads", nargs="*", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--bf16", action="store_true", help="compute in bf16, keep f32 weights")
    parser.add_argument("--initial", help=argparse.SUPPRESS)
    parser.add_argument("--torch-job", help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--onnx-job", help=argparse.SUPPRESS)
    parser.add_argument("--onnx-file", help=argparse.SUPPRESS)
    a = parser.parse_intermixed_args()
    if a.torch_job:
        return torch_job(a.torch_job, a.compiled, a.threads, a.steps, a.initial, a.bf16)
    if a.onnx_job:
        return onnx_job(a.onnx_job, a.onnx_file, a.threads, a.steps, a.initial)
    if not a.pupil or a.steps < 2:
        parser.error("give the path of the pupil program, and at least 2 steps")
    unknown = set(a.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"unknown workload {unknown.pop()}; known: {' '.join(WORKLOADS)}")
    has_onnx = importlib.util.find_spec("onnxruntime") is not None
    if not has_onnx:
        print("onnxruntime is not installed: without its column")
    keys = ["images_per_s"] + (["per_cpu_s"] if a.threads == 1 else [])
    for workload in a.workloads or WORKLOADS:
        rounds = []
        with tempfile.TemporaryDirectory() as folder:
            initial = os.path.join(folder, "initial.safetensors")
            run_pupil(workload, a, initial)
            exported = has_onnx and workload.endswith("infer") and not a.bf16
            onnx = os.path.join(folder, "network.onnx") if exported else None
            if onnx:
                export(workload, a, initial, onnx)
            for _ in range(a.rounds):
                rounds.append({"pupil": run_pupil(workload, a),
                               "tuned": run_torch(workload, False, a, initial)})
                if not a.eager:
                    rounds[-1]["compiled"] = run_torch(workload, True, a, initial)
                if onnx:
                    rounds[-1]["onnxruntime"] = run_onnx(workload, a, initial, onnx)
        differs = difference(workload, rounds[0], a.bf16)
        for key in keys:
            median = {who: statistics.median(r[who][key] for r in rounds) for who in rounds[0]}

            def ratio_to(*peers):
                ratios = [r["pupil"][key] / max(r[who][key] for who in peers if who in r) for r in rounds]
                return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"

            rss = {who: rounds[0][who]["peak_rss_bytes"] // 2**20 for who in median}
            first = {who: round(statistics.median(r[who]["first_step_s"] for r in rounds), 2)
                     for who in median}
            ratio = f"no ratio: {differs}" if differs else "ratio " + ratio_to("tuned", "compiled")
            if "onnxruntime" in median and not differs:
                ratio += ", to onnxruntime " + ratio_to("onnxruntime")
            print(f"{workload:28s} {key:12s} " +
                  "  ".join(f"{who} {value:.1f}" for who, value in median.items()) +
                  f"  {ratio}  peak MiB {rss}  first step after s {first}", flush=True)


if __name__ == "__main__":
    main()
