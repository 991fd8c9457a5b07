"""Do timm, torchvision, open_clip and transformers agree with Pupil about the same file?

For every network below, with random weights: (load) the library saves it and Pupil reads it; (write)
Pupil writes it and the library loads it with strict=True. Both must give the library's logits (of a
network without a classifier its features) on the same images, to 1e-4 of the largest.

    tools/check_python.sh            # makes the environment and runs this
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-4


class Refused(Exception):
    pass


class Pupil:
    def __init__(self, program, folder):
        self.program, self.folder = os.path.abspath(program), folder

    def __call__(self, *arguments):
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr.strip())
        return done.stdout

    def outputs(self, network, images, tap, *options):
        """What the network says of `images`, through `pupil features`."""
        x, y, out = (os.path.join(self.folder, n) for n in ("x.npy", "y.npy", "rows.safetensors"))
        np.save(x, images.numpy())
        np.save(y, np.arange(len(images)))
        self("features", "--teacher", network, "--data", f"npy:{x}+{y}", "--tap", tap, "--out", out, *options)
        return load_file(out)["rows"][:, 0]


def randomise(model, seed):
    """Weights that all matter: no scale is one, no bias zero."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("logit_scale"):
                p.fill_(1.5)
            elif name.rsplit(".", 1)[-1] in ("gamma", "gamma_1", "gamma_2", "lambda1", "layer_scale"):
                p.copy_(uniform(p, 0.3, 0.8))
            elif p.ndim < 2:
                p.add_(uniform(p, -0.1, 0.1))
            elif p.ndim == 2 and (name.endswith("proj") or "token" in name or "embed" in name):
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
            elif name.startswith("head") or name.startswith("fc") or "classifier" in name:
                p.copy_(torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
    return model.eval()


def settle(model, run):
    """Statistics of batch norms that fit the weights, or signals fade from layer to layer."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    model.train()
    for m in norms:
        m.momentum = 1
    with torch.no_grad():
        run()
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
    return model.eval()


def difference(a, b):
    assert a.shape == b.shape, f"{tuple(a.shape)} and {tuple(b.shape)}"
    assert torch.isfinite(b).all()
    assert (b[0] - b[1]).abs().max() > 1e-3 * b.abs().max(), "both images have the same outputs"
    return ((a - b).abs().max() / b.abs().max()).item()


def images_of(side):
    generator = torch.Generator().manual_seed(side)
    coarse = torch.randn(2, 3, max(side // 16, 2), max(side // 16, 2), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return smooth + 0.1 * torch.randn(2, 3, side, side, generator=generator)


def as_file(model, path):
    torch.save(model.state_dict(), path)
    return path


def forward(model, x):
    with torch.no_grad():
        return model(x)


# ---- one row of the table each: (load, write) differences


def plain(pupil, name, layout, make, side, seed=1):
    """Networks of timm and torchvision: `make` builds one, `name` is Pupil's."""
    model, x = randomise(make(), seed), images_of(side)
    settle(model, lambda: model(x))
    wanted = forward(model, x)
    given = as_file(model, os.path.join(pupil.folder, "library.pth"))
    load = difference(pupil.outputs(f"{name}:{given}", x, "logits"), wanted)

    written = os.path.join(pupil.folder, "pupil.safetensors")
    pupil("convert", given, written, "--layout", layout)
    again = make()
    again.load_state_dict(load_file(written), strict=True)
    write = difference(forward(again.eval(), x), wanted)
    return load, write


def across(pupil, name, name_there, layout, make, make_there, side):
    """A network that two libraries have: one saves it, the other loads what Pupil makes of it."""
    model, x = randomise(make(), 7), images_of(side)
    settle(model, lambda: model(x))
    wanted = forward(model, x)
    given = as_file(model, os.path.join(pupil.folder, f"{name}.pth"))
    written = os.path.join(pupil.folder, f"{name_there}.safetensors")
    pupil("convert", given, written, "--layout", layout)
    there = make_there()
    there.load_state_dict(load_file(written), strict=True)
    load = max(difference(pupil.outputs(path, x, "logits"), wanted) for path in (given, written))
    return load, difference(forward(there.eval(), x), wanted)


def refused(pupil, layout, make, why):
    """A network that computes something else in the other library."""
    given = as_file(make(), os.path.join(pupil.folder, "library.pth"))
    try:
        pupil("convert", given, os.path.join(pupil.folder, "pupil.safetensors"), "--layout", layout)
    except Refused as error:
        assert why in str(error), error
        return None, None
    raise AssertionError("was written")


def to_transformers(pupil, name, make, side):
    """A network of timm, written for transformers."""
    import transformers

    model = randomise(make(), 2)
    x = images_of(side)
    wanted = forward(model, x)
    given = as_file(model, os.path.join(pupil.folder, "library.pth"))
    folder = os.path.join(pupil.folder, "hf")
    pupil("convert", given, folder, "--layout", "hf", "--model", name)
    config = json.load(open(os.path.join(folder, "config.json")))
    kind = getattr(transformers, config["architectures"][0])
    again, report = kind.from_pretrained(folder, output_loading_info=True)
    strict(report)
    out = forward(again.eval(), x)
    out = out.logits if hasattr(out, "logits") else out.last_hidden_state[:, 0]
    read = difference(pupil.outputs(folder, x, "logits"), wanted)
    return read, difference(out, wanted)


def strict(report):
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report.get(what), f"{what}: {report[what]}"


def transformers_folder(pupil, kind, config, back=None):
    """A folder that transformers wrote; `back`: timm's network of this size, for the way back."""
    import transformers

    torch.manual_seed(0)
    model = randomise(getattr(transformers, kind)(config), 3)
    folder = os.path.join(pupil.folder, "hf")
    model.save_pretrained(folder)
    x = images_of(config.image_size)
    out = forward(model, x)
    wanted = out.logits if hasattr(out, "logits") else out.pooler_output
    load = difference(pupil.outputs(folder, x, "logits"), wanted)
    if back is None:
        return load, None
    written = os.path.join(pupil.folder, "pupil.safetensors")
    pupil("convert", folder, written, "--layout", "timm")
    again = back()
    again.load_state_dict(load_file(written), strict=True)
    out = forward(again.eval(), x)
    if not config.architectures or "Classification" not in kind:
        wanted = model(x).last_hidden_state[:, 0].detach()
    return load, difference(out, wanted)


def open_clip_network(pupil, name, layout):
    """Both ways for the image tower, and through transformers for both towers where it has them."""
    import open_clip
    import transformers

    torch.manual_seed(0)
    model = randomise(open_clip.create_model(name), 4)
    side = model.visual.image_size
    x = images_of(side[0] if isinstance(side, tuple) else side)
    settle(model, lambda: model.encode_image(x))
    texts = torch.zeros(2, model.context_length, dtype=torch.long)
    words = [[49406, 320, 1125, 539, 49407], [49406, 2368, 49407]]
    vocabulary = model.vocab_size if hasattr(model, "vocab_size") else 49408
    for row, ids in zip(texts, words):
        row[: len(ids)] = torch.tensor(ids) % vocabulary
    with torch.no_grad():
        image, text = model.encode_image(x), model.encode_text(texts)
    given = as_file(model, os.path.join(pupil.folder, "library.pth"))
    load = difference(pupil.outputs(f"{name}:{given}", x, "features"), image)
    if layout is None:
        written = os.path.join(pupil.folder, "pupil.safetensors")
        pupil("convert", given, written, "--layout", "openai")
        again = open_clip.create_model(name)
        again.load_state_dict(load_file(written), strict=True)
        with torch.no_grad():
            return load, difference(again.eval().encode_image(x), image)
    folder = os.path.join(pupil.folder, "hf")
    pupil("convert", given, folder, "--layout", "hf", "--model", name)
    kind = json.load(open(os.path.join(folder, "config.json")))["architectures"][0]
    again, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    strict(report)
    with torch.no_grad():
        out = again.eval()(input_ids=texts, pixel_values=x)
    unit = torch.nn.functional.normalize
    write = max(
        difference(out.image_embeds, unit(image, dim=-1)),
        difference(out.text_embeds, unit(text, dim=-1)),
        difference(pupil.outputs(folder, x, "features"), image),
    )
    return load, write


def other_size(pupil, name, side):
    """A checkpoint for images of another size than it was trained with."""
    import open_clip

    torch.manual_seed(0)
    given = as_file(randomise(open_clip.create_model(name), 6), os.path.join(pupil.folder, "library.pth"))
    model = open_clip.create_model(name, pretrained=given, force_image_size=side).eval()
    x = images_of(side)
    with torch.no_grad():
        return difference(pupil.outputs(f"{name}:{given}", x, "features", "--image", str(side)),
                          model.encode_image(x)), None


def zero_shot(pupil, name):
    """The probabilities of open_clip and of `pupil predict` for images that need no resizing."""
    import open_clip
    from PIL import Image

    torch.manual_seed(0)
    model = randomise(open_clip.create_model(name), 5)
    model.logit_scale.data.fill_(4.6)  # as trained
    given = as_file(model, os.path.join(pupil.folder, "library.pth"))
    side = model.visual.image_size
    side = side[0] if isinstance(side, tuple) else side
    pixels = (images_of(side) * 50 + 127).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    paths = []
    for i, image in enumerate(pixels):
        paths.append(os.path.join(pupil.folder, f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    classes, templates = ["cat", "sea lion", "dog"], ["a photo of a {}.", "art of the {}"]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    tokenizer = open_clip.get_tokenizer(name)
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        texts = [
            unit(unit(model.encode_text(tokenizer([t.format(c) for t in templates])), dim=-1).mean(0), dim=0)
            for c in classes
        ]
        logits = model.logit_scale.exp() * unit(model.encode_image(x), dim=-1) @ torch.stack(texts).T
    vocabulary = os.path.join(os.path.dirname(open_clip.__file__), "bpe_simple_vocab_16e6.txt.gz")
    arguments = ["--model", name, "--weights", given, "--vocab", vocabulary, "--json"]
    for t in templates:
        arguments += ["--template", t]
    rows = json.loads(pupil("predict", *arguments, "--classes", ",".join(classes), *paths))
    found = torch.zeros(2, 3)
    for row, line in zip(found, rows):
        for answer in line["top"]:
            row[answer["class"]] = answer["probability"]
    wanted = logits.softmax(-1)
    assert wanted.max() > 0.34, "every class is as likely as the others"
    return (found - wanted).abs().max().item(), None


def student(pupil, name, layout, make, side):
    """A student that `pupil train` saved after two steps."""
    folder = os.path.join(pupil.folder, "run")
    generator = np.random.default_rng(0)
    np.save(os.path.join(pupil.folder, "i.npy"), generator.integers(0, 256, (8, 40, 40, 3), np.uint8))
    np.save(os.path.join(pupil.folder, "l.npy"), np.arange(8) % 4)
    data = "npy:" + "+".join(os.path.join(pupil.folder, n) for n in ("i.npy", "l.npy"))
    config = os.path.join(pupil.folder, "student.toml")
    text = pupil("init", "--student", name, "--data", data)
    open(config, "w").write(text)
    settings = ["train.epochs=1", "train.batch=4", f"student.image={side}", "data.validation_share=0"]
    pupil("train", config, "--run", folder, *[a for s in settings for a in ("--set", s)])
    model = make()
    file = os.path.join(folder, "last.safetensors")
    model.load_state_dict(load_file(file), strict=True)
    x = images_of(side)
    wanted = forward(model.eval(), x)
    return None, difference(pupil.outputs(file, x, "logits"), wanted)


def rows(pupil):
    import logging

    import timm
    import torchvision
    import transformers
    from timm.models.vision_transformer import VisionTransformer

    logging.disable(logging.WARNING)  # that weights are random is meant
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def of_timm(name, side, pupils=None, **options):
        make = lambda: timm.create_model(name, pretrained=False, **options)
        return "timm", name, lambda: plain(pupil, pupils or name, "timm", make, side)

    def of_torchvision(name, side=224, pupils=None):
        make = lambda: getattr(torchvision.models, name)(weights=None)
        return "torchvision", name, lambda: plain(pupil, pupils or name, "torchvision", make, side)

    def both_ways(name, timms):
        names = {"torchvision": name, "timm": timms}
        make = {"torchvision": lambda: getattr(torchvision.models, name)(weights=None),
                "timm": lambda: timm.create_model(timms, pretrained=False)}
        for a, b in (("torchvision", "timm"), ("timm", "torchvision")):
            yield f"{a} to {b}", names[a], functools.partial(
                across, pupil, names[a], names[b], b, make[a], make[b], 224)

    def timm_to_hf(name, side, **options):
        make = lambda: timm.create_model(name, pretrained=False, **options)
        return "timm to transformers", name, lambda: to_transformers(pupil, name, make, side)

    yield of_timm("vit_tiny_patch16_224", 224)
    yield of_timm("deit_tiny_distilled_patch16_224", 224)
    yield of_timm("deit3_small_patch16_224", 224)
    yield of_timm("vit_small_patch14_dinov2", 518)
    yield of_timm("vit_small_patch14_reg4_dinov2", 518)
    yield of_timm("vit_small_patch16_dinov3", 256)
    yield of_timm("vit_tiny_patch16_dinov3_qkvb", 256)
    yield of_timm("vit_base_patch16_siglip_224", 224)
    yield of_timm("mixer_b16_224", 224)
    yield of_timm("resnet50d", 224)
    yield of_timm("resnet18", 224, "resnet18.a1_in1k")
    yield of_timm("resnetv2_50x1_bit", 224)
    yield of_timm("regnety_004", 224)
    yield of_timm("convnext_tiny", 224)
    yield of_timm("convnextv2_tiny", 224)
    yield of_timm("mobilenetv2_100", 224)
    yield of_timm("mobilenetv3_small_100", 224)
    yield of_timm("mobilenetv3_large_100", 224)
    yield of_timm("efficientnet_b0", 224, "efficientnet_b0.ra_in1k")
    yield of_timm("tf_efficientnet_lite0", 224)
    for name in ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2",
                 "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf",
                 "shufflenet_v2_x1_0", "squeezenet1_1"):
        yield of_torchvision(name)
    yield of_torchvision("convnext_tiny")
    yield of_torchvision("vit_b_16", pupils="vit_base_patch16_224")
    for name, timms in (("mobilenet_v2", "mobilenetv2_100"), ("efficientnet_b0", "efficientnet_b0"),
                        ("regnet_y_400mf", "regnety_004"), ("convnext_tiny", "convnext_tiny"),
                        ("vit_b_16", "vit_base_patch16_224"), ("resnet50", "resnet50")):
        yield from both_ways(name, timms)
    yield ("torchvision to timm", "mobilenet_v3_small, refused", lambda: refused(
        pupil, "timm", lambda: torchvision.models.mobilenet_v3_small(weights=None), "variance"))
    yield ("torchvision to transformers", "vit_b_16", lambda: to_transformers(
        pupil, "vit_base_patch16_224", lambda: torchvision.models.vit_b_16(weights=None), 224))
    yield timm_to_hf("vit_tiny_patch16_224", 224)
    yield timm_to_hf("deit_tiny_distilled_patch16_224", 224)
    yield timm_to_hf("vit_small_patch14_dinov2", 518)
    yield timm_to_hf("vit_small_patch14_reg4_dinov2", 518)
    yield timm_to_hf("vit_tiny_patch16_dinov3_qkvb", 256, global_pool="token")

    hf = transformers
    sizes = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
                 image_size=32, patch_size=8)
    of_this_size = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2)
    dino_sizes = {k: v for k, v in sizes.items() if k != "intermediate_size"} | dict(mlp_ratio=2)
    folders = [
        ("ViTForImageClassification", hf.ViTConfig(**sizes, num_labels=5),
         lambda: VisionTransformer(**of_this_size, num_classes=5, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-12))),
        ("ViTModel", hf.ViTConfig(**sizes), None),
        ("DeiTForImageClassificationWithTeacher", hf.DeiTConfig(**sizes, num_labels=5), None),
        ("DeiTForImageClassification", hf.DeiTConfig(**sizes, num_labels=5), None),
        ("Dinov2Model", hf.Dinov2Config(**dino_sizes),
         lambda: VisionTransformer(**of_this_size, num_classes=0, init_values=1)),
        ("Dinov2Model", hf.Dinov2Config(**dino_sizes, use_swiglu_ffn=True), None),
        ("Dinov2ForImageClassification", hf.Dinov2Config(**dino_sizes, num_labels=5), None),
        ("Dinov2WithRegistersModel", hf.Dinov2WithRegistersConfig(**dino_sizes), None),
        ("DINOv3ViTModel", hf.DINOv3ViTConfig(**sizes), None),
        ("DINOv3ViTModel", hf.DINOv3ViTConfig(**sizes, use_gated_mlp=True, hidden_act="silu"), None),
    ]
    for kind, config, back in folders:
        config.architectures = [kind]
        yield "transformers", kind, lambda: transformers_folder(pupil, kind, config, back)

    yield "open_clip", "ViT-B-32-quickgelu", lambda: open_clip_network(pupil, "ViT-B-32-quickgelu", None)
    yield "open_clip", "RN50-quickgelu", lambda: open_clip_network(pupil, "RN50-quickgelu", None)
    yield "open_clip to transformers", "ViT-B-32-quickgelu", lambda: open_clip_network(pupil, "ViT-B-32-quickgelu", "hf")
    yield "open_clip to transformers", "ViT-B-16-SigLIP", lambda: open_clip_network(pupil, "ViT-B-16-SigLIP", "hf")
    yield "open_clip, 160 pixels", "ViT-B-32-quickgelu", lambda: other_size(pupil, "ViT-B-32-quickgelu", 160)
    yield "open_clip zero-shot", "ViT-B-32-quickgelu", lambda: zero_shot(pupil, "ViT-B-32-quickgelu")

    def of_training(library, name, layout, make, side):
        return f"student for {library}", name, lambda: student(pupil, name, layout, make, side)

    yield of_training("timm", "mobilenetv3_small_100", "timm",
                      lambda: timm.create_model("mobilenetv3_small_100", num_classes=4), 224)
    yield of_training("torchvision", "resnet18", "torchvision",
                      lambda: torchvision.models.resnet18(num_classes=4), 224)
    yield of_training("timm", "vit_tiny_patch16_224", "timm",
                      lambda: timm.create_model("vit_tiny_patch16_224", num_classes=4), 224)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("program", help="the built pupil")
    arguments.add_argument("--only", default="", help="rows whose library or name has this in it")
    a = arguments.parse_args()
    bad = count = 0
    print(f"{'library':28}{'network':44}{'load':>10}{'write':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for library, name, check in rows(Pupil(a.program, folder)):
            if a.only not in f"{library} {name}":
                continue
            count += 1
            for old in os.listdir(folder):  # every row begins with an empty folder
                subprocess.run(["rm", "-rf", os.path.join(folder, old)], check=True)
            try:
                found = check()
            except Exception as error:  # the other rows still count
                print(f"{library:28}{name:44}  {type(error).__name__}: {error}", flush=True)
                bad += 1
                continue
            cells = "".join(f"{'-' if d is None else f'{d:.1e}':>10}" for d in found)
            failed = any(d is not None and not d <= TOLERANCE for d in found)
            bad += failed
            print(f"{library:28}{name:44}{cells}{'  FAILED' if failed else ''}", flush=True)
    print(f"{count - bad} of {count} agree to {TOLERANCE} of the largest output")
    sys.exit(bad > 0 or count == 0)


if __name__ == "__main__":
    main()
