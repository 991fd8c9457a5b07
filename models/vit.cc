#include "vit.h"

namespace pupil::models {
namespace {

BlockOptions block_options(const VitConfig& c) {
  return {.dim = c.dim,
          .hidden = c.hidden ? c.hidden : int64_t(double(c.dim) * c.mlp_ratio),
          .heads = c.heads,
          .qkv_bias = c.qkv_bias,
          .qk_norm = c.qk_norm,
          .activation = c.activation,
          .gate = c.gate,
          .layer_scale = c.layer_scale,
          .norm_eps = c.norm_eps,
          .dropout = c.dropout,
          .drop_path = c.drop_path};
}

// Position embeddings (1, prefix + h w, dim) of another grid.
Tensor resample(const Tensor& embed, int prefix, int h, int w, int new_h, int new_w,
                bool antialias) {
  if (antialias) return resample_pos_embed(embed, prefix, h, w, new_h, new_w);
  int64_t dim = embed.dim(2);
  Tensor grid = permute(view(slice(embed, 1, prefix, embed.dim(1)), {1, h, w, dim}), {0, 3, 1, 2});
  Tensor resized =
      interpolate(grid, {.mode = InterpolateOptions::Mode::bicubic, .size = {new_h, new_w}});
  return cat({slice(embed, 1, 0, prefix),
              view(permute(resized, {0, 2, 3, 1}), {1, int64_t(new_h) * new_w, dim})},
             1);
}

// SigLIP's pooling (Zhai et al. 2023, arXiv 2303.15343): a learned query looks at all tokens.
struct AttentionPoolLatent {
  int heads;
  Tensor latent;
  nn::Linear q, kv, proj;
  nn::LayerNorm norm;
  Mlp mlp;

  AttentionPoolLatent(const nn::Scope& scope, BlockOptions o)
      : heads(o.heads),
        latent(
            scope.param("latent", {1, 1, o.dim}, {nn::Init::normal, 1 / std::sqrt(double(o.dim))})),
        q(scope / "q", o.dim, o.dim, kTrunc, {}, o.qkv_bias),
        kv(scope / "kv", o.dim, 2 * o.dim, kTrunc, {}, o.qkv_bias),
        proj(scope / "proj", o.dim, o.dim, kTrunc, {}),
        norm(scope / "norm", o.dim, o.norm_eps),
        mlp(scope, o.dim, plain(o)) {}

  static BlockOptions plain(BlockOptions o) {
    o.gate = Gate::none;
    o.dropout = 0;
    return o;
  }

  // (n, tokens, dim) -> (n, dim)
  Tensor operator()(const Tensor& x, const nn::Call& call) const {
    int64_t batch = x.dim(0), tokens = x.dim(1), dim = x.dim(2), width = dim / heads;
    Tensor query =
        view(expand(q(to_dtype(latent, x.dtype())), {batch, 1, dim}), {batch, heads, 1, width});
    Tensor packed = view(kv(x), {batch, tokens, 2, heads, width});
    auto part = [&](int64_t which) {
      return view(permute(slice(packed, 2, which, which + 1), {0, 3, 1, 2, 4}),
                  {batch, heads, tokens, width});
    };
    Tensor y =
        proj(view(attention(query, part(0), part(1), 1 / std::sqrt(double(width))), {batch, dim}));
    return mlp(norm(y), call, y);
  }
};

struct Vit {
  VitConfig config;
  int grid, prefix, positioned;  // prefix tokens, those of them that have a position
  nn::PatchEmbed patch_embed;
  Tensor class_token, dist_token, registers, positions;
  std::optional<nn::LayerNorm> norm_pre;
  std::vector<Block> blocks;
  nn::LayerNorm norm;  // "norm" over all tokens, or "fc_norm" after the average
  std::optional<AttentionPoolLatent> attn_pool;
  std::optional<nn::Linear> pooler, head, head_dist;

  Vit(const VitConfig& c, const nn::Scope& scope)
      : config(c),
        grid(c.image / c.patch),
        prefix(c.class_token + c.distilled + c.registers),
        positioned(c.positions == VitPositions::all            ? prefix
                   : c.positions == VitPositions::no_registers ? prefix - c.registers
                                                               : 0),
        patch_embed(scope / "patch_embed" / "proj", 3, c.dim, c.patch, !c.pre_norm),
        class_token(c.class_token ? token(scope, "cls_token", 1) : Tensor()),
        dist_token(c.distilled ? token(scope, "dist_token", 1) : Tensor()),
        registers(c.registers ? token(scope, "reg_token", c.registers) : Tensor()),
        positions(scope.param("pos_embed", {1, positioned + int64_t(grid) * grid, c.dim}, kTrunc,
                              [this](const Tensor& stored) { return from_other_grid(stored); })),
        norm_pre(c.pre_norm ? std::optional<nn::LayerNorm>(std::in_place, scope / "norm_pre", c.dim,
                                                           c.norm_eps)
                            : std::nullopt),
        blocks(make_blocks(scope / "blocks", c.depth, block_options(c))),
        norm(scope / (c.pool == VitPool::avg ? "fc_norm" : "norm"), c.dim, c.norm_eps) {
    if (c.pool == VitPool::map) attn_pool.emplace(scope / "attn_pool", block_options(c));
    if (c.pooler) pooler.emplace(scope / "pooler", c.dim, c.dim, kTrunc, nn::Init{});
    if (c.classes) head.emplace(scope / "head", width(), c.classes, kTrunc, nn::Init{});
    if (c.classes && two_heads())
      head_dist.emplace(scope / "head_dist", width(), c.classes, kTrunc, nn::Init{});
  }

  Tensor token(const nn::Scope& scope, const char* name, int64_t count) const {
    return scope.param(name, {1, count, config.dim}, {nn::Init::normal, 1e-6});
  }

  bool two_heads() const { return config.distilled && config.second_head; }
  int64_t width() const { return config.dim * (config.pool == VitPool::token_and_avg ? 2 : 1); }

  // Position embeddings of a checkpoint that was trained on another (square) grid.
  Tensor from_other_grid(const Tensor& given) const {
    // Hugging Face's SigLIP stores a matrix.
    Tensor stored = given.rank() == 2 ? view(given, {1, given.dim(0), given.dim(1)}) : given;
    if (stored.rank() != 3 || stored.dim(0) != 1) return {};
    int64_t patches = stored.dim(1) - positioned;
    int old = int(std::lround(std::sqrt(double(std::max<int64_t>(patches, 0)))));
    if (old < 1 || patches != int64_t(old) * old) return {};
    if (old == grid) return stored;
    return resample(stored, positioned, old, old, grid, grid, config.antialias);
  }

  // Patches (n, count, dim) -> tokens (n, prefix + count, dim) with their positions.
  Tensor tokens(const Tensor& x, int rows, int columns) const {
    Tensor place = rows == grid && columns == grid ? positions
                                                   : resample(positions, positioned, grid, grid,
                                                              rows, columns, config.antialias);
    if (prefix == int(config.class_token) && positioned == prefix)
      return embed_tokens(x, class_token, place);
    return to_dtype(joined(to_dtype(x, place.dtype()), place), x.dtype());
  }

  Tensor joined(const Tensor& x, const Tensor& place) const {
    std::vector<Tensor> in_front, behind_positions;
    for (const Tensor& t : {class_token, dist_token})
      if (t) (positioned ? in_front : behind_positions).push_back(t);
    if (registers) (positioned == prefix ? in_front : behind_positions).push_back(registers);
    auto join = [&](const std::vector<Tensor>& first, const Tensor& rest) {
      if (first.empty()) return rest;
      Tensor row = cat(first, 1);
      return cat({expand(row, {x.dim(0), row.dim(1), row.dim(2)}), rest}, 1);
    };
    if (behind_positions.empty() || in_front.empty())
      return join(behind_positions, add(join(in_front, x), place));
    // Class token, registers, patches: the registers come between tokens that have positions.
    int64_t front = positioned;
    Tensor placed = add(join(in_front, x), place);
    return cat({slice(placed, 1, 0, front),
                join(behind_positions, slice(placed, 1, front, placed.dim(1)))},
               1);
  }

  Output operator()(const Tensor& images, const nn::Call& call) const {
    require_patches("vit", images, config.patch);
    Tensor x = patch_embed(images);
    call.see("patch_embed", x);
    x = tokens(x, int(images.dim(2)) / config.patch, int(images.dim(3)) / config.patch);
    x = call.dropout(x, config.dropout);
    call.see("embeddings", x);
    if (norm_pre) x = (*norm_pre)(x);
    int64_t read = two_heads() ? 2 : config.pool == VitPool::token ? 1 : 0;
    Tokens last = run_blocks(blocks, x, "blocks", call, read, call.wants("norm"));
    // The norm of the other tokens is computed only for those who ask, and beside the classifier's.
    if (read && call.wants("norm")) call.see("norm", norm(last.all));
    if (two_heads()) return both_heads(norm(last.first), call);
    Tensor features = pooled(last, call);
    return {head ? (*head)(features) : features, features};
  }

  Tensor pooled(const Tokens& last, const nn::Call& call) const {
    if (config.pool == VitPool::token) {
      Tensor first = view(norm(last.first), {last.first.dim(0), config.dim});
      return pooler ? tanh((*pooler)(first)) : first;
    }
    if (config.pool == VitPool::avg) {
      call.see("norm", last.all);
      return norm(patch_mean(last.all));
    }
    Tensor all = norm(last.all);
    call.see("norm", all);
    if (attn_pool) return (*attn_pool)(all, call);
    return cat({view(slice(all, 1, 0, 1), {all.dim(0), config.dim}), patch_mean(all)}, 1);
  }

  Tensor patch_mean(const Tensor& x) const {
    return mean(prefix ? slice(x, 1, prefix, x.dim(1)) : x, {1});
  }

  Output both_heads(const Tensor& tokens, const nn::Call& call) const {
    auto at = [&](int64_t i) {
      return view(slice(tokens, 1, i, i + 1), {tokens.dim(0), config.dim});
    };
    Tensor by_class = head ? (*head)(at(0)) : at(0), by_dist = head ? (*head_dist)(at(1)) : at(1);
    call.see("logits_cls", by_class);
    call.see("logits_dist", by_dist);
    auto half = [](const Tensor& a, const Tensor& b) { return scale(add(a, b), 0.5); };
    return {half(by_class, by_dist), half(at(0), at(1))};
  }
};

}  // namespace

void require_patches(const char* model, const Tensor& images, int patch) {
  PUPIL_CHECK(images.rank() == 4 && images.dim(1) == 3, model, ": images (n,3,h,w), got ",
              images.shape());
  if (images.dim(2) < patch || images.dim(2) % patch || images.dim(3) < patch ||
      images.dim(3) % patch)
    fail_input(model, ": images of ", images.dim(2), "x", images.dim(3),
               " cannot be cut into patches of ", patch, "x", patch);
}

Model make_vit(const VitConfig& config, const nn::Scope& scope) {
  auto require = [](bool fine, const auto&... message) {
    if (!fine) fail_input("vit: ", message...);
  };
  require(config.patch > 0 && config.image > 0 && config.image % config.patch == 0, "image ",
          config.image, " is not a multiple of patch ", config.patch);
  require(config.heads > 0 && config.dim > 0 && config.dim % config.heads == 0, "dim ", config.dim,
          " is not a multiple of heads ", config.heads);
  require(config.depth > 0, "depth must be at least 1");
  require(config.registers >= 0, "registers must be at least 0");
  require(config.hidden > 0 || config.mlp_ratio * config.dim >= 1, "mlp_ratio must be positive");
  require(config.class_token || config.pool == VitPool::avg || config.pool == VitPool::map,
          "pooling by class token needs one; use pool=avg");
  require(!config.distilled ||
              (config.class_token && config.pool == VitPool::token && config.registers == 0),
          "a distillation token needs a class token, pooling by it, and no registers");
  require(
      config.dropout >= 0 && config.dropout < 1 && config.drop_path >= 0 && config.drop_path < 1,
      "dropout and drop_path lie in [0, 1)");
  auto net = std::make_shared<const Vit>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = net->width();
  model.head = "head";
  model.vit = std::make_shared<const VitConfig>(config);
  model.input = {config.image, 3, {0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f}};
  model.taps = {"patch_embed", "embeddings"};
  for (int i = 0; i < config.depth; i++) model.taps.push_back("blocks." + std::to_string(i));
  model.taps.push_back("norm");
  if (net->two_heads()) model.taps.insert(model.taps.end(), {"logits_cls", "logits_dist"});
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  return model;
}

namespace {

struct Public {
  const char *name, *title;
  VitConfig config;
  std::vector<float> mean, std;
  double crop = 0.9;
};

const std::vector<Public>& published() {
  static const std::vector<float> half{0.5f, 0.5f, 0.5f};
  static const std::vector<float> imagenet = imagenet_preprocessing().mean;
  static const std::vector<float> imagenet_std = imagenet_preprocessing().std;
  static const std::vector<float> clip{0.48145466f, 0.4578275f, 0.40821073f};
  static const std::vector<float> clip_std{0.26862954f, 0.26130258f, 0.27577711f};
  auto sized = [](int dim, int depth, int heads, int patch = 16) {
    VitConfig c;
    c.dim = dim, c.depth = depth, c.heads = heads, c.patch = patch;
    return c;
  };
  auto with = [](VitConfig c, auto change) {
    change(c);
    return c;
  };
  auto tiny = sized(192, 12, 3), small = sized(384, 12, 6), base = sized(768, 12, 12),
       large = sized(1024, 24, 16);
  auto distilled = [](VitConfig& c) { c.distilled = true; };
  auto deit3 = [](VitConfig& c) {
    c.positions = VitPositions::patches;
    c.layer_scale = 1e-6;
  };
  auto dinov2 = [](VitConfig& c) {
    c.image = 518, c.patch = 14;
    c.layer_scale = 1e-5;
  };
  auto reg4 = [=](VitConfig& c) {
    dinov2(c);
    c.registers = 4;
    c.positions = VitPositions::patches;
  };
  auto giant = with(sized(1536, 40, 24), [](VitConfig& c) {
    c.mlp_ratio = 2.66667 * 2;
    c.gate = Gate::packed;
    c.activation = Activation::silu;
  });
  auto clip_tower = [](VitConfig& c) {
    c.pre_norm = true;
    c.norm_eps = 1e-5;
  };
  auto siglip = [](VitConfig& c) {
    c.class_token = false;
    c.pool = VitPool::map;
  };
  static const std::vector<Public> all{
      {"vit_tiny_patch16_224", "ViT-Ti/16", tiny, half, half},
      {"vit_small_patch16_224", "ViT-S/16", small, half, half},
      {"vit_base_patch16_224", "ViT-B/16", base, half, half},
      {"vit_base_patch32_224", "ViT-B/32", sized(768, 12, 12, 32), half, half},
      {"vit_large_patch16_224", "ViT-L/16", large, half, half},
      {"deit_tiny_patch16_224", "DeiT-Ti", tiny, imagenet, imagenet_std},
      {"deit_small_patch16_224", "DeiT-S", small, imagenet, imagenet_std},
      {"deit_base_patch16_224", "DeiT-B", base, imagenet, imagenet_std},
      {"deit_tiny_distilled_patch16_224", "DeiT-Ti, distillation token", with(tiny, distilled),
       imagenet, imagenet_std},
      {"deit_small_distilled_patch16_224", "DeiT-S, distillation token", with(small, distilled),
       imagenet, imagenet_std},
      {"deit_base_distilled_patch16_224", "DeiT-B, distillation token", with(base, distilled),
       imagenet, imagenet_std},
      {"deit3_small_patch16_224", "DeiT-III-S", with(small, deit3), imagenet, imagenet_std},
      {"vit_small_patch14_dinov2", "DINOv2 ViT-S/14", with(small, dinov2), imagenet, imagenet_std,
       1},
      {"vit_base_patch14_dinov2", "DINOv2 ViT-B/14", with(base, dinov2), imagenet, imagenet_std, 1},
      {"vit_large_patch14_dinov2", "DINOv2 ViT-L/14", with(large, dinov2), imagenet, imagenet_std,
       1},
      {"vit_giant_patch14_dinov2", "DINOv2 ViT-g/14", with(giant, dinov2), imagenet, imagenet_std,
       1},
      {"vit_small_patch14_reg4_dinov2", "DINOv2 ViT-S/14, registers", with(small, reg4), imagenet,
       imagenet_std, 1},
      {"vit_base_patch14_reg4_dinov2", "DINOv2 ViT-B/14, registers", with(base, reg4), imagenet,
       imagenet_std, 1},
      {"vit_large_patch14_reg4_dinov2", "DINOv2 ViT-L/14, registers", with(large, reg4), imagenet,
       imagenet_std, 1},
      {"vit_giant_patch14_reg4_dinov2", "DINOv2 ViT-g/14, registers", with(giant, reg4), imagenet,
       imagenet_std, 1},
      {"vit_base_patch16_clip_224", "image tower of CLIP B/16, fine-tuned", with(base, clip_tower),
       clip, clip_std, 0.95},
      {"vit_base_patch16_clip_quickgelu_224", "image tower of CLIP B/16 with its projection",
       with(with(base, clip_tower), [](VitConfig& c) { c.activation = Activation::quick_gelu; }),
       clip, clip_std, 1},
      {"vit_base_patch16_siglip_224", "image tower of SigLIP B/16", with(base, siglip), half, half},
      {"vit_so400m_patch14_siglip_224", "image tower of SigLIP So400m/14",
       with(sized(1152, 27, 16, 14),
            [=](VitConfig& c) {
              siglip(c);
              c.hidden = 4304;
            }),
       half, half}};
  return all;
}

}  // namespace

std::vector<Entry> vits() {
  std::vector<Entry> all;
  for (const Public& p : published()) {
    int side = p.config.image;
    all.push_back({{p.name, concat(p.title, ", ", side, "x", side, " images")},
                   [&p](const nn::Scope& scope, const Options& options) {
                     VitConfig config = p.config;
                     config.classes = options.classes;
                     if (options.image) config.image = options.image;
                     config.dropout = options.dropout;
                     config.drop_path = options.drop_path;
                     Model model = make_vit(config, scope);
                     model.input = {config.image, 3, p.mean, p.std, Filter::bicubic};
                     // Another size than the published one is not cropped.
                     if (config.image == p.config.image) model.input.crop_pct = p.crop;
                     return model;
                   }});
  }
  return all;
}

}  // namespace pupil::models
