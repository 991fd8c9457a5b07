#include "clip.h"

#include <algorithm>

#include "vit.h"

namespace pupil::models {
namespace {

BlockOptions block_options(const ClipTransformer& t, bool causal) {
  BlockOptions o;
  o.dim = t.width;
  o.hidden = t.hidden;
  o.heads = t.heads;
  o.causal = causal;
  o.activation = t.activation;
  o.norm_eps = t.norm_eps;
  o.names = openai_names();
  return o;
}

nn::Init scaled_normal(int64_t width) { return {nn::Init::normal, 1 / std::sqrt(double(width))}; }

// Stored positions (1 + old grid, width), class token first, on another grid as open_clip resizes
// them; empty for what is no square grid of this width.
Tensor on_other_grid(const Tensor& stored, int grid, int64_t width) {
  if (stored.rank() != 2 || stored.dim(1) != width || stored.dim(0) < 2) return {};
  int old = int(std::lround(std::sqrt(double(stored.dim(0) - 1))));
  if (int64_t(old) * old + 1 != stored.dim(0)) return {};
  Tensor resized =
      resample_pos_embed(view(stored, {1, stored.dim(0), width}), 1, old, old, grid, grid);
  return view(resized, {1 + int64_t(grid) * grid, width});
}

struct ClipVit {
  nn::PatchEmbed patches;
  Tensor class_embedding, positions;
  nn::LayerNorm ln_pre;
  std::vector<Block> blocks;
  nn::LayerNorm ln_post;
  Tensor projection;

  ClipVit(const ClipConfig& c, const nn::Scope& scope)
      : patches(scope / "conv1", 3, c.vision.width, c.patch, false),
        class_embedding(
            scope.param("class_embedding", {c.vision.width}, scaled_normal(c.vision.width))),
        positions(
            scope.param("positional_embedding",
                        {1 + int64_t(c.image / c.patch) * (c.image / c.patch), c.vision.width},
                        scaled_normal(c.vision.width),
                        [&c](const Tensor& stored) {
                          return on_other_grid(stored, c.image / c.patch, c.vision.width);
                        })),
        ln_pre(scope / "ln_pre", c.vision.width, c.vision.norm_eps),
        blocks(make_blocks(scope / "transformer" / "resblocks", c.vision.layers,
                           block_options(c.vision, false))),
        ln_post(scope / "ln_post", c.vision.width, c.vision.norm_eps),
        projection(
            scope.param("proj", {c.vision.width, c.embed_dim}, scaled_normal(c.vision.width))) {}

  Tensor operator()(const Tensor& images, const nn::Call& call) const {
    int64_t width = projection.dim(0);
    Tensor x = embed_tokens(patches(images), view(class_embedding, {1, 1, width}),
                            view(positions, {1, positions.dim(0), width}));
    x = ln_pre(x);
    call.see("ln_pre", x);
    Tensor first = run_blocks(blocks, x, "visual", call, 1).first;
    return matmul(ln_post(view(first, {x.dim(0), width})), to_dtype(projection, x.dtype()));
  }
};

struct ClipText {
  nn::Embedding tokens;
  Tensor positions;
  std::vector<Block> blocks;
  nn::LayerNorm ln_final;
  Tensor projection;               // of CLIP, (width, embed_dim)
  std::optional<nn::Linear> head;  // of SigLIP instead

  ClipText(const ClipConfig& c, const nn::Scope& scope)
      : tokens(scope / "token_embedding", c.vocabulary, c.text.width, {nn::Init::normal, 0.02}),
        positions(scope.param("positional_embedding", {c.context, c.text.width},
                              {nn::Init::normal, 0.01})),
        blocks(make_blocks(scope / "transformer" / "resblocks", c.text.layers,
                           block_options(c.text, !c.siglip))),
        ln_final(scope / "ln_final", c.text.width, c.text.norm_eps) {
    if (c.siglip)
      head.emplace(scope / "text_projection", c.text.width, c.embed_dim);
    else
      projection =
          scope.param("text_projection", {c.text.width, c.embed_dim}, scaled_normal(c.text.width));
  }

  Tensor operator()(const Tensor& ids, const nn::Call& call) const {
    PUPIL_CHECK(ids.rank() == 2 && ids.dtype() == DType::i64 && ids.dim(1) > 0 &&
                    ids.dim(1) <= positions.dim(0),
                "clip: ids i64 (n, up to ", positions.dim(0), " tokens), got ", ids.shape());
    int64_t n = ids.dim(0), length = ids.dim(1), width = positions.dim(1);
    Tensor x = add(tokens(ids), slice(positions, 0, 0, length));
    x = run_blocks(blocks, x, "text", call, 0).all;
    if (call.wants("text.ln_final")) call.see("text.ln_final", ln_final(x));
    if (head) return (*head)(ln_final(view(slice(x, 1, length - 1, length), {n, width})));
    std::vector<int64_t> ends;  // of the texts, as rows of all tokens
    Tensor rows = ids.contiguous();
    for (int64_t i = 0; i < n; i++) {
      const int64_t* row = rows.data<int64_t>() + i * length;
      ends.push_back(i * length + (std::max_element(row, row + length) - row));
    }
    Tensor at = announce("text_ends", from(ends, {n}), {ids}, {}).to(x.device());
    return matmul(ln_final(index_select(view(x, {n * length, width}), at)), projection);
  }
};

// SigLIP's image tower.
Model make_trunk(const ClipConfig& c, const nn::Scope& scope) {
  VitConfig vit;
  vit.image = c.image;
  vit.patch = c.patch;
  vit.dim = int(c.vision.width);
  vit.depth = c.vision.layers;
  vit.heads = c.vision.heads;
  vit.hidden = c.vision.hidden;
  vit.classes = 0;
  vit.class_token = false;
  vit.pool = VitPool::map;
  vit.activation = c.vision.activation;
  vit.norm_eps = c.vision.norm_eps;
  return make_vit(vit, scope);
}

// SigLIP's scale and bias have the shape (1) at Hugging Face and () in open_clip.
Tensor scalar(const nn::Scope& scope, const char* name, double value, bool siglip) {
  return scope.param(
      name, siglip ? Shape{1} : Shape{}, {nn::Init::constant, value},
      [](const Tensor& stored) { return stored.numel() == 1 ? view(stored, {1}) : Tensor(); });
}

}  // namespace

Tensor Clip::logits(const Tensor& image_features, const Tensor& text_features) const {
  Tensor cosines = matmul(normalize(image_features), normalize(text_features), false, true);
  Tensor scaled = mul(cosines, exp(logit_scale));
  return logit_bias ? add(scaled, logit_bias) : scaled;
}

Clip make_clip(const ClipConfig& c, const nn::Scope& scope) {
  PUPIL_CHECK(c.resnet.empty() ? c.patch > 0 && c.image >= c.patch : c.image % 32 == 0,
              "clip: images of side ", c.image, " with patches of side ", c.patch);
  Clip clip;
  Model& image = clip.image;
  std::function<Tensor(const Tensor&, const nn::Call&)> tower;
  nn::Scope visual = scope / "visual";
  if (c.siglip) {
    image = make_trunk(c, visual / "trunk");
    tower = [trunk = image.forward](const Tensor& x, const nn::Call& call) {
      return trunk(x, call).features;
    };
  } else if (c.resnet.empty()) {
    tower = [net = std::make_shared<const ClipVit>(c, visual)](
                const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
    image.taps = {"ln_pre"};
    for (int i = 0; i < c.vision.layers; i++) image.taps.push_back(concat("visual.", i));
  } else {
    tower = make_clip_resnet(c, visual);
    image.taps = {"stem", "layer1", "layer2", "layer3", "layer4"};
  }
  if (c.siglip)
    image.input.filter = Filter::bicubic;
  else
    image.input = {c.image,
                   3,
                   {0.48145466f, 0.4578275f, 0.40821073f},
                   {0.26862954f, 0.26130258f, 0.27577711f},
                   Filter::bicubic};
  std::optional<nn::Linear> head;
  if (c.classes) head.emplace(scope / "head", c.embed_dim, c.classes);
  image.classes = c.classes;
  image.width = c.embed_dim;
  image.head = "head";
  image.clip = std::make_shared<const ClipConfig>(c);
  image.vit.reset();  // SigLIP's trunk alone
  image.forward = [tower, head, side = c.image](const Tensor& x, const nn::Call& call) -> Output {
    PUPIL_CHECK(x.rank() == 4 && x.dim(1) == 3, "clip: images (n,3,h,w), got ", x.shape());
    if (x.dim(2) != side || x.dim(3) != side)
      fail_input("clip: images of ", x.dim(2), "x", x.dim(3), "; this network reads ", side, "x",
                 side);
    Tensor features = tower(x, call);
    return {head ? (*head)(features) : features, features};
  };
  clip.text = [net = std::make_shared<const ClipText>(
                   c, c.custom_text || c.siglip ? scope / "text" : scope)](
                  const Tensor& ids, const nn::Call& call) { return (*net)(ids, call); };
  clip.context = c.context;
  clip.logit_scale = scalar(scope, "logit_scale", std::log(c.siglip ? 10 : 1 / 0.07), c.siglip);
  if (c.siglip) clip.logit_bias = scalar(scope, "logit_bias", -10, true);
  return clip;
}

namespace {

ClipTransformer transformer(int64_t width, int heads, int layers, double mlp_ratio = 4) {
  return {.width = width,
          .hidden = int64_t(double(width) * mlp_ratio),
          .heads = heads,
          .layers = layers};
}

ClipConfig vit(int image, int patch, const ClipTransformer& vision, const ClipTransformer& text,
               int64_t embed_dim) {
  return {.image = image, .patch = patch, .vision = vision, .text = text, .embed_dim = embed_dim};
}

ClipConfig resnet(int image, int64_t width, std::vector<int> layers, int64_t text_width,
                  int64_t embed_dim) {
  return {.image = image,
          .patch = 0,
          .vision = {.width = width, .heads = int(width / 2)},
          .resnet = std::move(layers),
          .text = transformer(text_width, int(text_width / 64), 12),
          .embed_dim = embed_dim};
}

struct NamedClip {
  std::string name;
  ClipConfig config;
};

// What open_clip has under these names, each with the exact GELU and with CLIP's quick one, which
// OpenAI's weights need. No file tells which it is.
const std::vector<NamedClip>& named_clips() {
  static const std::vector<NamedClip> all = [] {
    ClipTransformer base = transformer(768, 12, 12), large = transformer(1024, 16, 24);
    ClipTransformer small_text = transformer(512, 8, 12), large_text = transformer(1024, 16, 24);
    std::vector<NamedClip> list{
        {"RN50", resnet(224, 64, {3, 4, 6, 3}, 512, 1024)},
        {"RN101", resnet(224, 64, {3, 4, 23, 3}, 512, 512)},
        {"RN50x4", resnet(288, 80, {4, 6, 10, 6}, 640, 640)},
        {"RN50x16", resnet(384, 96, {6, 8, 18, 8}, 768, 768)},
        {"RN50x64", resnet(448, 128, {3, 15, 36, 10}, 1024, 1024)},
        {"ViT-B-32", vit(224, 32, base, small_text, 512)},
        {"ViT-B-16", vit(224, 16, base, small_text, 512)},
        {"ViT-L-14", vit(224, 14, large, base, 768)},
        {"ViT-L-14-336", vit(336, 14, large, base, 768)},
        {"ViT-H-14", vit(224, 14, transformer(1280, 16, 32), large_text, 1024)}};
    for (size_t i = 0, n = list.size(); i < n; i++) {
      NamedClip quick = list[i];
      quick.name += "-quickgelu";
      quick.config.vision.activation = quick.config.text.activation = Activation::quick_gelu;
      list.push_back(quick);
    }
    list.push_back({"ViT-g-14", vit(224, 14, transformer(1408, 16, 40, 4.3637), large_text, 1024)});
    ClipConfig siglip = vit(224, 16, base, base, 768);
    siglip.siglip = true;
    siglip.vision.norm_eps = siglip.text.norm_eps = 1e-6;
    siglip.context = 64;
    siglip.vocabulary = 32000;
    list.push_back({"ViT-B-16-SigLIP", siglip});
    return list;
  }();
  return all;
}

}  // namespace

std::optional<ClipConfig> clip_named(std::string_view name) {
  for (const NamedClip& clip : named_clips())
    if (clip.name == name) return clip.config;
  return std::nullopt;
}

std::vector<Entry> clips() {
  std::vector<Entry> all;
  for (const NamedClip& named : named_clips()) {
    const ClipConfig& config = named.config;
    all.push_back(
        {{named.name,
          concat(config.siglip ? "SigLIP, " : "CLIP, ", config.resnet.empty() ? "ViT" : "ResNet",
                 " and text tower, ", config.image, "x", config.image, " images")},
         [config](const nn::Scope& scope, const Options& options) {
           ClipConfig own = config;
           own.classes = options.classes;
           if (options.image) own.image = options.image;
           return make_clip(own, scope).image;
         }});
  }
  return all;
}

}  // namespace pupil::models
