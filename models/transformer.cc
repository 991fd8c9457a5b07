#include "transformer.h"

namespace pupil::models {
namespace {

nn::Linear layer(const nn::Scope& scope, int64_t in, int64_t out, const BlockOptions& options,
                 bool bias) {
  return {scope, in, out, options.weight, nn::Init{}, bias};
}

}  // namespace

BlockNames openai_names() {
  return {.norm1 = "ln_1",
          .qkv = "attn.in_proj_",
          .proj = "attn.out_proj",
          .scale1 = "ls_1.gamma",
          .norm2 = "ln_2",
          .fc1 = "mlp.c_fc",
          .fc2 = "mlp.c_proj",
          .scale2 = "ls_2.gamma"};
}

Mlp::Mlp(const nn::Scope& scope, int64_t dim, const BlockOptions& o)
    : fc1_(layer(scope / (o.names.fc1 + (o.gate == Gate::apart ? "_g" : "")), dim, o.hidden, o,
                 o.mlp_bias)),
      value_(o.gate == Gate::apart
                 ? std::optional(layer(scope / (o.names.fc1 + "_x"), dim, o.hidden, o, o.mlp_bias))
                 : std::nullopt),
      fc2_(layer(scope / o.names.fc2, o.gate == Gate::packed ? o.hidden / 2 : o.hidden, dim, o,
                 o.mlp_bias)),
      activation_(o.activation),
      gate_(o.gate),
      dropout_(o.dropout) {}

Tensor Mlp::operator()(const Tensor& x, const nn::Call& call, const Tensor& residual) const {
  bool drops = call.drops(dropout_);
  if (gate_ == Gate::none && !drops)
    return mlp(x, fc1_.weight, fc1_.bias, activation_, fc2_.weight, fc2_.bias, residual);
  Tensor h = fc1_(x);
  if (gate_ == Gate::packed) {
    int axis = h.rank() - 1;
    int64_t half = h.dim(axis) / 2;
    h = mul(activate(slice(h, axis, 0, half), activation_), slice(h, axis, half, 2 * half));
  } else {
    h = activate(h, activation_);
    if (gate_ == Gate::apart) h = mul(h, (*value_)(x));
  }
  if (!drops) return fc2_(h, residual);
  Tensor y = call.dropout(fc2_(call.dropout(h, dropout_)), dropout_);
  return residual ? add(residual, y) : y;
}

Tensor Rotary::turn(const Tensor& x) const {
  return add(mul(x, cos), mul(roll(x, {x.dim(3) / 2}, {3}), sin));
}

SelfAttention::SelfAttention(const nn::Scope& scope, const BlockOptions& o)
    : heads_(o.heads),
      causal_(o.causal),
      weight_(scope.param(o.names.qkv + "weight", {3 * o.dim, o.dim}, o.weight)),
      bias_(o.qkv_bias ? scope.param(o.names.qkv + "bias", {3 * o.dim}, {}) : Tensor()),
      q_bias_(o.q_bias ? scope.param("attn.q_bias", {o.dim}, {}) : Tensor()),
      k_bias_(o.k_bias ? scope.param("attn.k_bias", {o.dim}, {}) : Tensor()),
      v_bias_(o.v_bias ? scope.param("attn.v_bias", {o.dim}, {}) : Tensor()),
      q_norm_(o.qk_norm ? std::optional<nn::LayerNorm>(std::in_place, scope / "attn.q_norm",
                                                       o.dim / o.heads, o.norm_eps)
                        : std::nullopt),
      k_norm_(o.qk_norm ? std::optional<nn::LayerNorm>(std::in_place, scope / "attn.k_norm",
                                                       o.dim / o.heads, o.norm_eps)
                        : std::nullopt),
      proj_(layer(scope / o.names.proj, o.dim, o.dim, o, o.proj_bias)) {}

Tensor SelfAttention::bias() const {
  if (bias_ || !(q_bias_ || k_bias_ || v_bias_)) return bias_;
  Tensor none = zeros({weight_.dim(1)}, weight_.dtype(), weight_.device());
  return cat({q_bias_ ? q_bias_ : none, k_bias_ ? k_bias_ : none, v_bias_ ? v_bias_ : none}, 0);
}

// Of the packed projection only the parts begin .. end of q, k, v.
Tensor SelfAttention::project(const Tensor& x, int64_t begin, int64_t end) const {
  Tensor b = bias();
  if (begin == 0 && end == 3) return linear(x, weight_, b);
  int64_t dim = x.dim(2);
  return linear(x, slice(weight_, 0, begin * dim, end * dim),
                b ? slice(b, 0, begin * dim, end * dim) : b);
}

Tensor SelfAttention::operator()(const Tensor& x, const Rotary* rotary, int64_t queries,
                                 const Tensor& residual) const {
  if (!queries && !q_norm_ && !rotary && !causal_)
    return proj_(qkv_attention(project(x, 0, 3), heads_), residual);
  int64_t batch = x.dim(0), dim = x.dim(2), width = dim / heads_;
  auto part = [&](const Tensor& packed, int64_t which) {
    int64_t all_heads = packed.dim(2) / width;
    Tensor heads = permute(view(packed, {batch, packed.dim(1), all_heads, width}), {0, 2, 1, 3});
    return slice(heads, 1, which * heads_, (which + 1) * heads_);
  };
  Tensor of_all = project(x, queries ? 1 : 0, 3);  // k and v at least
  Tensor q = part(queries ? project(slice(x, 1, 0, queries), 0, 1) : of_all, 0);
  Tensor k = part(of_all, queries ? 0 : 1), v = part(of_all, queries ? 1 : 2);
  if (q_norm_) q = (*q_norm_)(q), k = (*k_norm_)(k);
  if (rotary) {
    int64_t n = q.dim(2);
    q = Rotary{slice(rotary->cos, 0, 0, n), slice(rotary->sin, 0, 0, n)}.turn(q);
    k = rotary->turn(k);
  }
  Tensor y = attention(q, k, v, 1 / std::sqrt(double(width)), {}, causal_);
  return proj_(view(permute(y, {0, 2, 1, 3}), {batch, q.dim(2), dim}), residual);
}

Block::Block(const nn::Scope& scope, const BlockOptions& o)
    : norm1_(scope / o.names.norm1, o.dim, o.norm_eps),
      attention_(scope, o),
      scale1_(o.layer_scale
                  ? scope.param(o.names.scale1, {o.dim}, {nn::Init::constant, *o.layer_scale})
                  : Tensor()),
      norm2_(scope / o.names.norm2, o.dim, o.norm_eps),
      mlp_(scope, o.dim, o),
      scale2_(o.layer_scale
                  ? scope.param(o.names.scale2, {o.dim}, {nn::Init::constant, *o.layer_scale})
                  : Tensor()),
      dropout_(o.dropout),
      drop_path_(o.drop_path) {}

Tensor Block::operator()(const Tensor& x, const nn::Call& call, const Rotary* rotary,
                         int64_t first) const {
  bool direct = !scale1_ && !call.drops(dropout_) && !call.drops(drop_path_);
  Tensor before = first ? slice(x, 1, 0, first) : x;
  if (direct) {  // the sums ride on the branches' last layers
    Tensor middle = attention_(norm1_(x), rotary, first, before);
    return mlp_(norm2_(middle), call, middle);
  }
  auto summand = [&](const Tensor& y, const Tensor& factor) {
    return call.drop_path(factor ? mul(y, to_dtype(factor, y.dtype())) : y, drop_path_);
  };
  Tensor seen = call.dropout(attention_(norm1_(x), rotary, first), dropout_);
  Tensor middle = add(before, summand(seen, scale1_));
  return add(middle, summand(mlp_(norm2_(middle), call), scale2_));
}

std::vector<Block> make_blocks(const nn::Scope& scope, int depth, const BlockOptions& options) {
  std::vector<Block> blocks;
  for (int i = 0; i < depth; i++) {
    BlockOptions block = options;
    block.drop_path = depth > 1 ? options.drop_path * i / (depth - 1) : 0;
    blocks.emplace_back(scope / i, block);
  }
  return blocks;
}

Tokens run_blocks(const std::vector<Block>& blocks, Tensor x, const std::string& tap,
                  const nn::Call& call, int64_t first, bool all, const Rotary* rotary) {
  size_t last = blocks.size() - 1;
  for (size_t i = 0; i < last; i++) {
    x = blocks[i](x, call, rotary);
    call.see(concat(tap, ".", i), x);
  }
  std::string name = concat(tap, ".", last);
  // Which values are dropped depends on how many there are.
  if (!first || call.every_token || blocks[last].drops(call)) {
    x = blocks[last](x, call, rotary);
    call.see(name, x);
    return {first ? slice(x, 1, 0, first) : x, x};
  }
  nn::Call beside = call;
  std::optional<Rng> again;
  if (call.rng) beside.rng = &again.emplace(*call.rng);
  Tokens tokens{blocks[last](x, call, rotary, first), {}};
  if (all || call.wants(name)) {
    tokens.all = blocks[last](x, beside, rotary);
    call.see(name, tokens.all);
  }
  return tokens;
}

}  // namespace pupil::models
