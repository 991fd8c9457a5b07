#include "layout.h"

#include <algorithm>

#include "../data/file.h"
#include "transformer.h"
#include "vit.h"

namespace pupil::models {
namespace {

// What * and @ stand for in a name that fits the pattern.
struct Captured {
  std::string number, kind;
};

bool digits(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
}

// Whether `name` is `pattern`, piece by piece between dots.
std::optional<Captured> match(std::string_view pattern, std::string_view name) {
  Captured found;
  while (true) {
    std::string_view p = pattern.substr(0, pattern.find('.')), n = name.substr(0, name.find('.'));
    if (p.ends_with("*") && n.starts_with(p.substr(0, p.size() - 1)) &&
        digits(n.substr(p.size() - 1)) && found.number.empty())
      found.number = n.substr(p.size() - 1);
    else if (p == "@" && (n == "weight" || n == "bias"))
      found.kind = n;
    else if (p != n)
      return std::nullopt;
    bool last = p.size() == pattern.size();
    if (last != (n.size() == name.size())) return std::nullopt;
    if (last) return found;
    pattern.remove_prefix(p.size() + 1);
    name.remove_prefix(n.size() + 1);
  }
}

std::string filled(std::string pattern, const Captured& with) {
  for (auto [mark, text] : {std::pair{'*', &with.number}, {'@', &with.kind}})
    if (size_t at = pattern.find(mark); at != pattern.npos) pattern.replace(at, 1, *text);
  return pattern;
}

bool begins_bare(const Layout& layout, const std::string& name) {
  return std::any_of(layout.bare.begin(), layout.bare.end(),
                     [&](const std::string& b) { return name.starts_with(b); });
}

// The prefix of `name`, of those that the layout allows; the empty one is always allowed.
std::string prefix_of(const Layout& layout, const std::string& name) {
  for (const std::string& prefix : layout.prefixes)
    if (name.starts_with(prefix)) return prefix;
  return "";
}

// The tensor with number `which` of names whose rows lie one after the other in `joined`.
Tensor part(const Tensor& joined, const std::vector<std::string>& names,
            const std::vector<int>& shares, size_t which) {
  if (names.size() == 1) return joined;
  int64_t before = 0, mine = 0, all = 0;
  for (size_t i = 0; i < names.size(); i++) {
    int64_t share = shares.empty() ? 1 : shares[i];
    if (i < which) before += share;
    if (i == which) mine = share;
    all += share;
  }
  int64_t rows = joined.dim(0);
  PUPIL_CHECK(rows % all == 0, "layout: ", rows, " rows do not split into ", all, " parts");
  return slice(joined, 0, rows / all * before, rows / all * (before + mine));
}

// With so many axes of size 1 more at the end, or fewer.
Shape with_ones(Shape shape, int more) {
  for (; more > 0; more--) shape.dims[shape.rank++] = 1;
  shape.rank += more;
  return shape;
}

bool ends_in_ones(const Shape& shape, int count) {
  return shape.rank > count && std::all_of(shape.dims + shape.rank - count, shape.dims + shape.rank,
                                           [](int64_t d) { return d == 1; });
}

Tensor translated(const std::vector<std::string>& from, const std::vector<std::string>& to,
                  const Translation::Entry& entry, int more_ones, size_t which,
                  const ReadTensor& read) {
  std::vector<Tensor> parts;
  for (const std::string& name : from) parts.push_back(read(name));
  Tensor joined = parts.size() == 1 ? parts[0] : cat(parts, 0);
  Tensor mine = part(joined, to, entry.shares, which);
  if (more_ones) mine = view(mine.contiguous(), with_ones(mine.shape(), more_ones));
  return (entry.transposed ? permute(mine, {1, 0}) : mine).contiguous();
}

// A file under our names.
class Renamed : public data::Weights {
 public:
  Renamed(std::shared_ptr<const data::Weights> file, Translation translation,
          const std::string& input = "")
      : file_(std::move(file)), translation_(std::move(translation)), metadata_(file_->metadata()) {
    if (!input.empty()) metadata_.emplace("input", input);
    std::map<std::string, data::TensorInfo> stored;
    for (const data::TensorInfo& info : file_->list()) stored[info.name] = info;
    for (const Translation::Entry& entry : translation_.entries) {
      data::TensorInfo joined = stored.at(entry.theirs[0]);
      int64_t all = 0;
      for (size_t i = 0; i < entry.ours.size(); i++)
        all += entry.shares.empty() ? 1 : entry.shares[i];
      bool cut = entry.ours.size() > 1 || entry.theirs.size() > 1;
      bool fits = (!cut || joined.shape.rank > 0) &&
                  (!entry.transposed || joined.shape.rank == 2) &&
                  (entry.ones <= 0 || ends_in_ones(joined.shape, entry.ones));
      for (size_t i = 1; fits && i < entry.theirs.size(); i++) {
        Shape more = stored.at(entry.theirs[i]).shape;
        fits = more.rank == joined.shape.rank &&
               std::equal(more.dims + 1, more.dims + more.rank, joined.shape.dims + 1);
        joined.shape[0] += more[0];
      }
      if (!fits || (cut && joined.shape[0] % all))
        fail_input(file_->path(), ": ", data::printable(entry.theirs[0]), " of shape ",
                   stored.at(entry.theirs[0]).shape, " cannot become ", entry.ours[0],
                   "; is this the file of another network?");
      for (size_t i = 0; i < entry.ours.size(); i++) {
        if (entry.ours[i].empty()) continue;  // rows that the network does without
        data::TensorInfo info = joined;
        info.name = entry.ours[i];
        if (entry.ours.size() > 1)
          info.shape[0] = joined.shape[0] / all * (entry.shares.empty() ? 1 : entry.shares[i]);
        if (entry.transposed) std::swap(info.shape[0], info.shape[1]);
        info.shape = with_ones(info.shape, -entry.ones);
        places_[info.name] = {&entry, i};
        list_.push_back(info);
      }
    }
    for (const std::string& name : translation_.unknown) list_.push_back(stored.at(name));
  }
  const std::vector<data::TensorInfo>& list() const override { return list_; }
  bool has(std::string_view name) const override {
    return std::any_of(list_.begin(), list_.end(), [&](auto& info) { return info.name == name; });
  }
  Tensor view(std::string_view name, DType dtype) const override {
    auto at = places_.find(name);
    if (at == places_.end()) return file_->view(name, dtype);
    return to_ours(*at->second.first, at->second.second,
                   [&](const std::string& theirs) { return file_->view(theirs, dtype); });
  }
  std::span<const uint8_t> bytes(std::string_view name) const override {
    auto at = places_.find(name);
    if (at == places_.end()) return file_->bytes(name);
    const Translation::Entry& entry = *at->second.first;
    if (entry.ours.size() > 1 || entry.theirs.size() > 1 || entry.transposed) return {};
    return file_->bytes(entry.theirs[0]);
  }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  const std::string& path() const override { return file_->path(); }
  std::string container() const override { return file_->container(); }
  std::string hash() const override { return file_->hash(); }

 private:
  std::shared_ptr<const data::Weights> file_;
  Translation translation_;
  std::map<std::string, std::string> metadata_;
  std::vector<data::TensorInfo> list_;
  std::map<std::string, std::pair<const Translation::Entry*, size_t>, std::less<>> places_;
};

std::vector<Rule> joined(std::vector<Rule> a, std::vector<Rule> b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// transformers' ViT, DeiT and DINOv2 (modeling_vit.py, modeling_deit.py, modeling_dinov2.py).
std::vector<Layout> hugging_face() {
  const std::string block = "encoder.layer.*.";
  std::vector<Rule> shared{
      {{"cls_token"}, {"embeddings.cls_token"}},
      {{"dist_token"}, {"embeddings.distillation_token"}},
      {{"reg_token"}, {"embeddings.register_tokens"}},
      {{"pos_embed"}, {"embeddings.position_embeddings"}},
      {{"patch_embed.proj.@"}, {"embeddings.patch_embeddings.projection.@"}},
      {{"blocks.*.attn.qkv.@"},
       {block + "attention.attention.query.@", block + "attention.attention.key.@",
        block + "attention.attention.value.@"}},
      {{"blocks.*.attn.proj.@"}, {block + "attention.output.dense.@"}},
      {{"norm.@"}, {"layernorm.@"}},
      {{"pooler.@"}, {"pooler.dense.@"}}};
  std::vector<Rule> vit{{{"blocks.*.norm1.@"}, {block + "layernorm_before.@"}},
                        {{"blocks.*.norm2.@"}, {block + "layernorm_after.@"}},
                        {{"blocks.*.mlp.fc1.@"}, {block + "intermediate.dense.@"}},
                        {{"blocks.*.mlp.fc2.@"}, {block + "output.dense.@"}}};
  std::vector<Rule> one_head{{{"head.@"}, {"classifier.@"}}};
  std::vector<Rule> two_heads{{{"head.@"}, {"cls_classifier.@"}},
                              {{"head_dist.@"}, {"distillation_classifier.@"}}};
  std::vector<Rule> dino{{{"blocks.*.norm1.@"}, {block + "norm1.@"}},
                         {{"blocks.*.norm2.@"}, {block + "norm2.@"}},
                         {{"blocks.*.ls1.gamma"}, {block + "layer_scale1.lambda1"}},
                         {{"blocks.*.ls2.gamma"}, {block + "layer_scale2.lambda1"}}};
  std::vector<Rule> plain{{{"blocks.*.mlp.fc1.@"}, {block + "mlp.fc1.@"}},
                          {{"blocks.*.mlp.fc2.@"}, {block + "mlp.fc2.@"}}};
  std::vector<Rule> gated{{{"blocks.*.mlp.fc1.@"}, {block + "mlp.weights_in.@"}},
                          {{"blocks.*.mlp.fc2.@"}, {block + "mlp.weights_out.@"}}};
  const std::vector<std::string> vit_prefixes{"vit.", "deit."},
      dino_prefixes{"dinov2.", "dinov2_with_registers."}, mask{"embeddings.mask_token"};

  const std::string turned = "layer.*.";
  std::vector<Rule> rotary{{{"cls_token"}, {"embeddings.cls_token"}},
                           {{"reg_token"}, {"embeddings.register_tokens"}},
                           {{"patch_embed.proj.@"}, {"embeddings.patch_embeddings.@"}},
                           {{"blocks.*.norm1.@"}, {turned + "norm1.@"}},
                           {{"blocks.*.attn.qkv.weight"},
                            {turned + "attention.q_proj.weight", turned + "attention.k_proj.weight",
                             turned + "attention.v_proj.weight"}},
                           {{"blocks.*.attn.q_bias"}, {turned + "attention.q_proj.bias"}},
                           {{"blocks.*.attn.k_bias"}, {turned + "attention.k_proj.bias"}},
                           {{"blocks.*.attn.v_bias"}, {turned + "attention.v_proj.bias"}},
                           {{"blocks.*.attn.proj.@"}, {turned + "attention.o_proj.@"}},
                           {{"blocks.*.gamma_1"}, {turned + "layer_scale1.lambda1"}},
                           {{"blocks.*.norm2.@"}, {turned + "norm2.@"}},
                           {{"blocks.*.mlp.fc2.@"}, {turned + "mlp.down_proj.@"}},
                           {{"blocks.*.gamma_2"}, {turned + "layer_scale2.lambda1"}},
                           {{"norm.@"}, {"norm.@"}}};
  std::vector<Rule> up{{{"blocks.*.mlp.fc1.@"}, {turned + "mlp.up_proj.@"}}};
  std::vector<Rule> up_and_gate{{{"blocks.*.mlp.fc1_g.@"}, {turned + "mlp.gate_proj.@"}},
                                {{"blocks.*.mlp.fc1_x.@"}, {turned + "mlp.up_proj.@"}}};
  const std::vector<std::string> heads{"classifier", "cls_classifier", "distillation_classifier"};
  return {{"hf_deit_with_teacher", "distillation_classifier.weight", vit_prefixes,
           joined(joined(shared, vit), two_heads), heads, mask},
          {"hf_vit", block + "layernorm_before.weight", vit_prefixes,
           joined(joined(shared, vit), one_head), heads, mask},
          {"hf_dinov2_swiglu", block + "mlp.weights_in.weight", dino_prefixes,
           joined(joined(shared, dino), joined(gated, one_head)), heads, mask},
          {"hf_dinov2", block + "layer_scale1.lambda1", dino_prefixes,
           joined(joined(shared, dino), joined(plain, one_head)), heads, mask},
          {"hf_dinov3_gated",
           turned + "mlp.gate_proj.weight",
           {"model."},
           joined(rotary, up_and_gate),
           {},
           mask},
          {"hf_dinov3", turned + "mlp.up_proj.weight", {"model."}, joined(rotary, up), {}, mask}};
}

// The files of facebookresearch/dinov2 and dinov3: timm's names but for a few. What no rule changes
// keeps its name.
std::vector<Layout> meta_dino() {
  const std::string mlp = "blocks.*.mlp.";
  std::vector<Rule> v2{{{"reg_token"}, {"register_tokens"}},
                       {{mlp + "fc1.@"}, {mlp + "w12.@"}},
                       {{mlp + "fc2.@"}, {mlp + "w3.@"}}};
  std::vector<Rule> v3{
      {{"reg_token"}, {"storage_tokens"}},
      {{"blocks.*.gamma_1"}, {"blocks.*.ls1.gamma"}},
      {{"blocks.*.gamma_2"}, {"blocks.*.ls2.gamma"}},
      {{"blocks.*.attn.q_bias", "", "blocks.*.attn.v_bias"},  // that of k is masked
       {"blocks.*.attn.qkv.bias"}},
      {{mlp + "fc1_g.@"}, {mlp + "w1.@"}},
      {{mlp + "fc1_x.@"}, {mlp + "w2.@"}},
      {{mlp + "fc2.@"}, {mlp + "w3.@"}}};
  return {{"meta_dinov3",
           "storage_tokens",
           {},
           v3,
           {},
           {"mask_token", "rope_embed.periods", "blocks.*.attn.qkv.bias_mask"}},
          {"meta_dinov2", "mask_token", {}, v2, {}, {"mask_token"}}};
}

// timm adds the position of the class token to the token itself where there are registers.
std::shared_ptr<const data::Weights> with_placed_class_token(
    std::shared_ptr<const data::Weights> file) {
  if (!file->has("reg_token") || !file->has("pos_embed") || !file->has("cls_token")) return file;
  Tensor positions = file->read("pos_embed", DType::f32),
         token = file->read("cls_token", DType::f32);
  if (positions.rank() != 3 || positions.dim(1) < 2 ||
      token.shape() != Shape{1, 1, positions.dim(2)})
    fail_input(file->path(), ": pos_embed ", positions.shape(), " and cls_token ", token.shape(),
               " do not fit together");
  return data::amend_weights(file,
                             {{"cls_token", add(token, slice(positions, 1, 0, 1))},
                              {"pos_embed", slice(positions, 1, 1, positions.dim(1)).contiguous()}},
                             file->metadata());
}

// transformers' CLIP and SigLIP (modeling_clip.py, modeling_siglip.py); ours are open_clip's names.
std::vector<Layout> hugging_face_towers() {
  const std::string vision = "vision_model.", text = "text_model.";
  auto blocks = [](const std::string& ours, const BlockNames& n, const std::string& model) {
    const std::string theirs = model + "encoder.layers.*.", attention = theirs + "self_attn.";
    std::vector<Rule> rules{{{ours + n.norm1 + ".@"}, {theirs + "layer_norm1.@"}},
                            {{ours + n.proj + ".@"}, {attention + "out_proj.@"}},
                            {{ours + n.norm2 + ".@"}, {theirs + "layer_norm2.@"}},
                            {{ours + n.fc1 + ".@"}, {theirs + "mlp.fc1.@"}},
                            {{ours + n.fc2 + ".@"}, {theirs + "mlp.fc2.@"}}};
    for (const std::string kind : {"weight", "bias"})
      rules.push_back({{ours + n.qkv + kind},
                       {attention + "q_proj." + kind, attention + "k_proj." + kind,
                        attention + "v_proj." + kind}});
    return rules;
  };
  auto text_tower = [&](const std::string& ours) {
    return joined(
        blocks(ours + "transformer.resblocks.*.", openai_names(), text),
        {{{ours + "token_embedding.weight"}, {text + "embeddings.token_embedding.weight"}},
         {{ours + "positional_embedding"}, {text + "embeddings.position_embedding.weight"}},
         {{ours + "ln_final.@"}, {text + "final_layer_norm.@"}},
         {{"logit_scale"}, {"logit_scale"}}});
  };
  const std::string embeddings = vision + "embeddings.";
  std::vector<Rule> clip{
      {{"visual.class_embedding"}, {embeddings + "class_embedding"}},
      {{"visual.positional_embedding"}, {embeddings + "position_embedding.weight"}},
      {{"visual.conv1.weight"}, {embeddings + "patch_embedding.weight"}},
      {{"visual.ln_pre.@"}, {vision + "pre_layrnorm.@"}},
      {{"visual.ln_post.@"}, {vision + "post_layernorm.@"}},
      {{"visual.proj"}, {"visual_projection.weight"}, {}, true},
      {{"text_projection"}, {"text_projection.weight"}, {}, true}};
  const std::string trunk = "visual.trunk.", head = vision + "head.";
  std::vector<Rule> siglip{{{trunk + "pos_embed"}, {embeddings + "position_embedding.weight"}},
                           {{trunk + "patch_embed.proj.@"}, {embeddings + "patch_embedding.@"}},
                           {{trunk + "norm.@"}, {vision + "post_layernorm.@"}},
                           {{trunk + "attn_pool.latent"}, {head + "probe"}},
                           {{trunk + "attn_pool.q.weight", trunk + "attn_pool.kv.weight"},
                            {head + "attention.in_proj_weight"},
                            {1, 2}},
                           {{trunk + "attn_pool.q.bias", trunk + "attn_pool.kv.bias"},
                            {head + "attention.in_proj_bias"},
                            {1, 2}},
                           {{trunk + "attn_pool.proj.@"}, {head + "attention.out_proj.@"}},
                           {{trunk + "attn_pool.norm.@"}, {head + "layernorm.@"}},
                           {{trunk + "attn_pool.mlp.fc1.@"}, {head + "mlp.fc1.@"}},
                           {{trunk + "attn_pool.mlp.fc2.@"}, {head + "mlp.fc2.@"}},
                           {{"text.text_projection.@"}, {text + "head.@"}},
                           {{"logit_bias"}, {"logit_bias"}}};
  const std::vector<std::string> numbers{embeddings + "position_ids",
                                         text + "embeddings.position_ids"};
  return {{"hf_clip",
           vision + "pre_layrnorm.weight",
           {},
           joined(joined(clip, blocks("visual.transformer.resblocks.*.", openai_names(), vision)),
                  text_tower("")),
           {},
           numbers},
          {"hf_siglip",
           head + "probe",
           {},
           joined(joined(siglip, blocks(trunk + "blocks.*.", {}, vision)), text_tower("text.")),
           {},
           numbers}};
}

// torchvision's Vision Transformer and ConvNeXt (vision_transformer.py, convnext.py); ours are
// timm's names.
std::vector<Layout> torchvision_layouts() {
  const std::string block = "encoder.layers.encoder_layer_*.",
                    attention = block + "self_attention.";
  std::vector<Rule> vit{{{"cls_token"}, {"class_token"}},
                        {{"pos_embed"}, {"encoder.pos_embedding"}},
                        {{"patch_embed.proj.@"}, {"conv_proj.@"}},
                        {{"blocks.*.norm1.@"}, {block + "ln_1.@"}},
                        {{"blocks.*.attn.qkv.weight"}, {attention + "in_proj_weight"}},
                        {{"blocks.*.attn.qkv.bias"}, {attention + "in_proj_bias"}},
                        {{"blocks.*.attn.proj.@"}, {attention + "out_proj.@"}},
                        {{"blocks.*.norm2.@"}, {block + "ln_2.@"}},
                        {{"blocks.*.mlp.fc1.@"}, {block + "mlp.0.@"}},
                        {{"blocks.*.mlp.fc2.@"}, {block + "mlp.3.@"}},
                        {{"blocks.*.mlp.fc1.@"}, {block + "mlp.linear_1.@"}},  // in older files
                        {{"blocks.*.mlp.fc2.@"}, {block + "mlp.linear_2.@"}},
                        {{"norm.@"}, {"encoder.ln.@"}},
                        {{"head.@"}, {"heads.head.@"}}};
  std::vector<Rule> convnext{{{"stem.0.@"}, {"features.0.0.@"}},
                             {{"stem.1.@"}, {"features.0.1.@"}},
                             {{"head.norm.@"}, {"classifier.0.@"}},
                             {{"head.fc.@"}, {"classifier.2.@"}}};
  for (int stage = 0; stage < 4; stage++) {
    const std::string ours = concat("stages.", stage, "."), in_block = ours + "blocks.*.",
                      theirs = concat("features.", 2 * stage + 1, ".*."),
                      down = concat("features.", 2 * stage, ".");
    convnext = joined(std::move(convnext),
                      {{{in_block + "conv_dw.@"}, {theirs + "block.0.@"}},
                       {{in_block + "norm.@"}, {theirs + "block.2.@"}},
                       {{in_block + "mlp.fc1.@"}, {theirs + "block.3.@"}},
                       {{in_block + "mlp.fc2.@"}, {theirs + "block.5.@"}},
                       {{in_block + "gamma"}, {theirs + "layer_scale"}, {}, false, 2}});
    if (stage)
      convnext = joined(std::move(convnext), {{{ours + "downsample.0.@"}, {down + "0.@"}},
                                              {{ours + "downsample.1.@"}, {down + "1.@"}}});
  }
  Preprocessing of_vit = imagenet_preprocessing(), of_convnext = of_vit;
  of_convnext.crop_pct = 0.949;  // 224 of 236
  return {{"torchvision_vit", block + "ln_1.weight", {}, vit, {}, {}, describe(of_vit)},
          {"torchvision_convnext",
           "features.1.*.layer_scale",
           {},
           convnext,
           {},
           {},
           describe(of_convnext)}};
}

// Networks that both libraries have, each under its own names, built here by one function: the
// parameters of both are the same in the same order.
struct Twins {
  const char *torchvision, *timm;
  const char* difference = "";  // in the arithmetic, why values of one are wrong for the other
};
constexpr const char* kNorms =
    "its batch norms add 0.001 to the variance in torchvision and 0.00001 in timm";
constexpr Twins kTwins[] = {{"mobilenet_v2", "mobilenetv2_100"},
                            {"mobilenet_v3_small", "mobilenetv3_small_100", kNorms},
                            {"mobilenet_v3_large", "mobilenetv3_large_100", kNorms},
                            {"efficientnet_b0", "efficientnet_b0.ra_in1k"},
                            {"regnet_y_400mf", "regnety_004"}};

Layout layout_between(const std::string& ours, const std::string& theirs) {
  Layout layout{theirs, "", {}, {}, {}, {}};
  nn::Store from = nn::Store::blueprint(), to = nn::Store::blueprint();
  make_model(ours, nn::Scope(from));
  make_model(theirs, nn::Scope(to));
  PUPIL_CHECK(from.params().size() == to.params().size(), ours, " and ", theirs, " differ");
  for (size_t i = 0; i < from.params().size(); i++) {
    PUPIL_CHECK(from.params()[i].value.shape() == to.params()[i].value.shape(), ours, " and ",
                theirs, " differ in ", from.params()[i].name);
    layout.rules.push_back({{from.params()[i].name}, {to.params()[i].name}});
  }
  return layout;
}

// What of this Vision Transformer torchvision's has not; "" where it has everything.
std::string missing_in_torchvision(const VitConfig& c) {
  if (!c.class_token || c.pool != VitPool::token) return "there a class token is classified";
  if (c.distilled || c.registers) return "there is no token there besides the class token";
  if (c.pre_norm || c.qk_norm || c.layer_scale || !c.qkv_bias || c.gate != Gate::none)
    return "its blocks are not those of torchvision";
  if (c.positions != VitPositions::all) return "there the class token has a position";
  if (c.activation != Activation::gelu) return "there the activation is the exact GELU";
  if (c.norm_eps > 1e-6) return concat("its norms add ", c.norm_eps, ", there they add 1e-6");
  return "";
}

}  // namespace

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = [] {
    std::vector<Layout> list = hugging_face();
    for (auto more : {hugging_face_towers, meta_dino, torchvision_layouts})
      for (Layout& layout : more()) list.push_back(std::move(layout));
    return list;
  }();
  return all;
}

const Layout& layout_named(const std::string& name) {
  auto at = std::find_if(layouts().begin(), layouts().end(),
                         [&](const Layout& layout) { return layout.name == name; });
  PUPIL_CHECK(at != layouts().end(), "no layout ", name);
  return *at;
}

const Layout* layout_of(const std::vector<std::string>& names) {
  for (const Layout& layout : layouts())
    for (const std::string& name : names)
      if (match(layout.mark, name.substr(prefix_of(layout, name).size()))) return &layout;
  return nullptr;
}

Translation::Translation(const Layout& layout, const std::vector<std::string>& theirs) {
  std::vector<std::string> taken;
  for (const std::string& name : theirs) {
    std::string prefix = prefix_of(layout, name), rest = name.substr(prefix.size());
    if (std::any_of(layout.dropped.begin(), layout.dropped.end(),
                    [&](const std::string& pattern) { return match(pattern, rest).has_value(); })) {
      dropped.push_back(name);
      continue;
    }
    for (const Rule& rule : layout.rules) {
      std::optional<Captured> found = match(rule.theirs[0], rest);
      if (!found) continue;
      Entry entry{{}, {}, rule.shares, rule.transposed, rule.ones};
      for (const std::string& ours : rule.ours) entry.ours.push_back(filled(ours, *found));
      for (const std::string& other : rule.theirs)
        entry.theirs.push_back(prefix + filled(other, *found));
      bool whole = std::all_of(entry.theirs.begin(), entry.theirs.end(), [&](auto& other) {
        return std::find(theirs.begin(), theirs.end(), other) != theirs.end();
      });
      if (!whole) continue;
      taken.insert(taken.end(), entry.theirs.begin(), entry.theirs.end());
      entries.push_back(std::move(entry));
      break;
    }
  }
  for (const std::string& name : theirs)
    if (std::find(taken.begin(), taken.end(), name) == taken.end() &&
        std::find(dropped.begin(), dropped.end(), name) == dropped.end())
      unknown.push_back(name);
}

Translation Translation::from_ours(const Layout& layout, const std::vector<std::string>& ours,
                                   const std::string& prefix) {
  Translation result;
  for (const std::string& name : ours) {
    bool known = false;
    for (const Rule& rule : layout.rules) {
      for (size_t i = 0; i < rule.ours.size() && !known; i++) {
        std::optional<Captured> found = match(rule.ours[i], name);
        if (!found) continue;
        known = true;
        if (i) break;  // part of the entry of its first name
        Entry entry{{}, {}, rule.shares, rule.transposed, rule.ones};
        for (const std::string& part : rule.ours) entry.ours.push_back(filled(part, *found));
        for (const std::string& other : rule.theirs) {
          std::string full = filled(other, *found);
          entry.theirs.push_back(begins_bare(layout, full) ? full : prefix + full);
        }
        result.entries.push_back(std::move(entry));
      }
      if (known) break;
    }
    if (!known) result.unknown.push_back(name);
  }
  return result;
}

Tensor to_ours(const Translation::Entry& entry, size_t which, const ReadTensor& theirs) {
  return translated(entry.theirs, entry.ours, entry, -entry.ones, which, theirs);
}

Tensor to_theirs(const Translation::Entry& entry, size_t which, const ReadTensor& ours) {
  return translated(entry.ours, entry.theirs, entry, entry.ones, which, ours);
}

std::vector<std::string> names_of(const data::Weights& file) {
  std::vector<std::string> names;
  for (const data::TensorInfo& info : file.list()) names.push_back(info.name);
  return names;
}

std::shared_ptr<const data::Weights> in_names_of(const Layout& layout, const std::string& prefix,
                                                 std::shared_ptr<const data::Weights> file) {
  Translation translation = Translation::from_ours(layout, names_of(*file), prefix);
  if (!translation.unknown.empty())
    fail_input(file->path(), ": ", data::printable(translation.unknown[0]),
               " has no place among the names of ", layout.name);
  for (Translation::Entry& entry : translation.entries) {
    std::swap(entry.ours, entry.theirs);
    entry.ones = -entry.ones;
  }
  return std::make_shared<Renamed>(std::move(file), std::move(translation));
}

std::shared_ptr<const data::Weights> in_names_of_library(
    const std::string& library, const Model& model, std::shared_ptr<const data::Weights> file) {
  auto refuse = [&](const std::string& why) {
    fail_input("convert: ", library, " has no network that computes what ", model.name,
               " does: ", why);
  };
  std::map<std::string, std::string> metadata = file->metadata();
  metadata.emplace("input", describe(model.input));
  bool to_torchvision = library == "torchvision";
  for (const Twins& twins : kTwins) {
    if (model.name != (to_torchvision ? twins.timm : twins.torchvision)) continue;
    if (*twins.difference) refuse(twins.difference);
    std::string theirs = to_torchvision ? twins.torchvision : twins.timm;
    metadata["model"] = theirs;
    return data::amend_weights(in_names_of(layout_between(model.name, theirs), "", file), {},
                               metadata);
  }
  bool convnext = model.name.starts_with("convnext_");
  if (!to_torchvision || !(model.vit || convnext)) refuse("it is not among its families");
  if (model.vit)
    if (std::string what = missing_in_torchvision(*model.vit); !what.empty()) refuse(what);
  metadata.emplace("model", model.name);
  return data::amend_weights(
      in_names_of(layout_named(convnext ? "torchvision_convnext" : "torchvision_vit"), "", file),
      {}, metadata);
}

std::vector<std::string> libraries_of(const std::vector<std::string>& names) {
  if (const Layout* layout = layout_of(names)) {
    return {layout->name.substr(0, layout->name.find('_'))};
  }
  // Files that have all of these are a library's.
  static const std::pair<const char*, std::vector<std::string>> marks[] = {
      {"timm", {"patch_embed.proj.weight", "blocks.0.norm1.weight"}},
      {"timm", {"stem.proj.weight", "blocks.0.norm1.weight"}},
      {"timm", {"conv_stem.weight"}},
      {"timm", {"layer4.0.conv1.weight"}},
      {"timm", {"s1.b1.conv1.conv.weight"}},
      {"timm", {"stages.0.blocks.0.conv1.weight"}},
      {"timm", {"stages.0.blocks.0.conv_dw.weight"}},
      {"torchvision", {"layer4.0.conv1.weight", "conv1.weight"}},
      {"torchvision", {"features.0.0.weight"}},
      {"torchvision", {"features.0.weight"}},
      {"torchvision", {"stage2.0.branch2.0.weight"}},
      {"torchvision", {"trunk_output.block1.block1-0.proj.0.weight"}},
      {"openai", {"visual.proj"}},
      {"openai", {"visual.attnpool.c_proj.weight"}}};
  std::vector<std::string> found;
  for (auto& [library, all] : marks)
    if (std::all_of(all.begin(), all.end(), [&](const std::string& mark) {
          return std::find(names.begin(), names.end(), mark) != names.end();
        }))
      found.push_back(library);
  return found;
}

std::shared_ptr<const data::Weights> in_our_names(std::shared_ptr<const data::Weights> file) {
  std::vector<std::string> names = names_of(*file);
  const Layout* layout = layout_of(names);
  if (!layout) return file;
  file = std::make_shared<Renamed>(std::move(file), Translation(*layout, names), layout->input);
  return layout->name == "meta_dinov2" ? with_placed_class_token(file) : file;
}

}  // namespace pupil::models
