#!/usr/bin/env python3
"""pupil bench against PyTorch on the same jobs, round after round so that a slow phase of the machine
hits all candidates alike. Run it with a Python that has torch:

    python tools/bench/compare_torch.py build/pupil --rounds 3

Candidates: pupil; torch tuned (channels-last, set_num_threads, bound threads, malloc that keeps its
memory); the same with torch.compile, for forward passes alone with frozen weights, which folds norms. Prints images/s (median over rounds of the median over steps)
and pupil's ratio to the better torch. With --threads 1 it also prints images per CPU second, which
other load on the machine hardly changes.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

TEACHER_WIDTH = 2048
WORKLOADS = ["resnet20_c10_train", "kd_resnet56_resnet20_train", "vit_tiny4_32_train",
             "aft_vit_tiny4_32_train", "aft_loss", "vit_tiny16_224_train", "resnet20_c10_infer",
             "vit_tiny4_32_infer", "vit_tiny16_224_infer"]


def sizes(workload):
    """Batch, side of the images, classes, side of a transformer's patches."""
    return (16, 224, 1000, 16) if "_224_" in workload else (128, 32, 10, 4)


TUNED = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000",
         "MALLOC_TOP_PAD_": "268435456"}
WARM_UP = 3


def torch_job(workload, compiled, threads, steps):
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

    def resnet(depth):
        layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)]
        cin = 16
        for cout in (16, 32, 64):
            for i in range((depth - 2) // 6):
                layers.append(Block(cin, cout, 2 if i == 0 and cout > 16 else 1))
                cin = cout
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                             nn.Linear(64, classes))

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

    class VitBlock(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class Vit(nn.Module):
        def __init__(self, dim=192, depth=12, heads=3):
            super().__init__()
            tokens = (image // patch)**2 + 1
            self.embed = nn.Conv2d(3, dim, patch, patch)
            self.cls = nn.Parameter(torch.zeros(1, 1, dim))
            self.positions = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
            self.blocks = nn.Sequential(*[VitBlock(dim, heads) for _ in range(depth)])
            self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.positions
            features = self.norm(self.blocks(x)[:, 0])
            return self.head(features), features

    def gram(x):
        x = x - x.mean(0, keepdim=True)
        x = x / (x.norm(dim=1, keepdim=True) + 1e-8)
        return x @ x.t()

    if workload == "aft_loss":
        return aft_loss(torch.compile(gram) if compiled else gram, steps)
    layout = torch.channels_last
    images = torch.randn(batch, 3, image, image).contiguous(memory_format=layout)
    labels = torch.arange(batch) * 7919 % classes
    vit = "vit" in workload
    student = (Vit() if vit else resnet(20)).to(memory_format=layout)
    groups = [{"params": list(student.parameters())}]
    teacher = resnet(56).eval().to(memory_format=layout) if workload.startswith("kd") else None
    forward_alone = workload.endswith("infer")
    if forward_alone:
        student.eval().requires_grad_(False)
        torch._inductor.config.freezing = True
    stored = torch.randn(batch, TEACHER_WIDTH)
    scores = torch.zeros(TEACHER_WIDTH, requires_grad=True)
    if workload.startswith("aft"):
        groups.append({"params": [scores], "lr": 1e-2, "weight_decay": 0})
    optimizer = torch.optim.SGD(groups, 0.05, 0.9, weight_decay=1e-4)
    if compiled:
        student = torch.compile(student)
        teacher = torch.compile(teacher) if teacher else None

    def step():
        if forward_alone:
            with torch.no_grad():
                return student(images)
        out = student(images)
        logits = out[0] if vit else out
        loss = F.cross_entropy(logits, labels)
        if teacher:
            with torch.no_grad():
                target = teacher(images)
            loss = 0.5 * loss + 0.5 * 16 * F.kl_div(
                F.log_softmax(logits / 4, 1), F.softmax(target / 4, 1), reduction="batchmean")
        if workload.startswith("aft"):
            difference = gram(out[1]) - gram(stored * scores.sigmoid())
            loss = loss + 10 * (difference.square().mean() + 1e-8).sqrt()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(WARM_UP):
        step()
    times, cpu = [], time.process_time()
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    print(json.dumps({"images_per_s": batch / statistics.median(times),
                      "per_cpu_s": batch * steps / cpu,
                      "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                      "torch": torch.__version__}))


def aft_loss(gram, steps):
    """The AFT loss alone, composed of PyTorch's operations, forward and backward."""
    import torch
    batch = sizes("aft_loss")[0]
    phi, psi = torch.randn(batch, 192, requires_grad=True), torch.randn(batch, 3200)
    s = torch.zeros(3200, requires_grad=True)
    times, cpu = [], 0.0
    for i in range(WARM_UP + 10 * steps):
        phi.grad = s.grad = None
        before, start = time.process_time(), time.perf_counter()
        difference = gram(phi) - gram(psi * s.sigmoid())
        loss = 10 * (difference.square().mean() + 1e-8).sqrt()
        loss.backward()
        loss.item()
        if i >= WARM_UP:
            times.append(time.perf_counter() - start)
            cpu += time.process_time() - before
    print(json.dumps({"images_per_s": batch / statistics.median(times),
                      "per_cpu_s": batch * len(times) / cpu,
                      "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                      "torch": torch.__version__}))


def run_torch(workload, compiled, a):
    env = {**os.environ, **TUNED}
    if a.threads > 1:
        env["OMP_PROC_BIND"] = "true"
    command = [sys.executable, __file__, "--torch-job", workload, "--threads", str(a.threads),
               "--steps", str(a.steps)] + (["--compiled"] if compiled else [])
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def run_pupil(workload, a):
    batch = sizes(workload)[0]

    def once(steps):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run([a.pupil, "bench", workload, "--json", "--batch", str(batch),
                              "--steps", str(steps), "--threads", str(a.threads)],
                             check=True, stdout=subprocess.PIPE, text=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return json.loads(out)[0], (after.ru_utime + after.ru_stime - before.ru_utime -
                                    before.ru_stime)

    result, cpu = once(a.steps)
    _, start_up = once(1)  # start-up, warm-up and one step
    return {"images_per_s": result["images_per_s"]["median"],
            "per_cpu_s": batch * (a.steps - 1) / (cpu - start_up),
            "peak_rss_bytes": result["peak_rss_bytes"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pupil", nargs="?", help="the pupil program")
    parser.add_argument("workloads", nargs="*", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--torch-job", help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.torch_job:
        return torch_job(a.torch_job, a.compiled, a.threads, a.steps)
    if not a.pupil or a.steps < 2:
        parser.error("give the path of the pupil program, and at least 2 steps")
    unknown = set(a.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"unknown workload {unknown.pop()}; known: {' '.join(WORKLOADS)}")
    keys = ["images_per_s"] + (["per_cpu_s"] if a.threads == 1 else [])
    for workload in a.workloads or WORKLOADS:
        rounds = []
        for _ in range(a.rounds):
            rounds.append({"pupil": run_pupil(workload, a), "tuned": run_torch(workload, False, a)})
            if not a.eager:
                rounds[-1]["compiled"] = run_torch(workload, True, a)
        for key in keys:
            median = {who: statistics.median(r[who][key] for r in rounds) for who in rounds[0]}
            ratios = [r["pupil"][key] / max(r[who][key] for who in r if who != "pupil") for r in rounds]
            rss = {who: rounds[0][who]["peak_rss_bytes"] // 2**20 for who in median}
            print(f"{workload:28s} {key:12s} " +
                  "  ".join(f"{who} {value:.1f}" for who, value in median.items()) +
                  f"  ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                  f"  peak MiB {rss}", flush=True)


if __name__ == "__main__":
    main()
