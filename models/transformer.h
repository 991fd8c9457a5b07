// The block that the Vision Transformers and the towers of CLIP and SigLIP share:
//   x += scale1 * attention(norm1(x));  x += scale2 * mlp(norm2(x)).
// Vaswani et al. 2017 (arXiv 1706.03762), norms first; scales (LayerScale): Touvron et al. 2021
// (arXiv 2103.17239).
#pragma once
#include "activation.h"

namespace pupil::models {

// Gated layers (Shazeer 2020, arXiv 2002.05202): fc2(act(g) * v), g and v the halves of one layer
// fc1 (packed), or two layers fc1_g and fc1_x (apart).
enum class Gate { none, packed, apart };

inline constexpr nn::Init kTrunc{nn::Init::normal, 0.02};  // of timm's tokens, positions, heads

struct BlockNames {  // the defaults are timm's
  std::string norm1 = "norm1", qkv = "attn.qkv.", proj = "attn.proj", scale1 = "ls1.gamma",
              norm2 = "norm2", fc1 = "mlp.fc1", fc2 = "mlp.fc2", scale2 = "ls2.gamma";
};
BlockNames openai_names();  // CLIP's: ln_1, attn.in_proj_weight, mlp.c_fc and so on

struct BlockOptions {
  int64_t dim = 0, hidden = 0;  // hidden: rows of fc1, both halves where it is packed
  int heads = 1;
  bool qkv_bias = true;                                 // one vector for q, k and v
  bool q_bias = false, k_bias = false, v_bias = false;  // or attn.q_bias and so on
  bool proj_bias = true, mlp_bias = true;
  bool qk_norm = false;  // LayerNorm over the width of a head
  bool causal = false;   // a token sees those before it
  Activation activation = Activation::gelu;
  Gate gate = Gate::none;
  std::optional<double> layer_scale{};  // its first value
  double norm_eps = 1e-6, dropout = 0, drop_path = 0;
  // timm's trunc_normal_(std=.02) cuts at +-2, a hundred standard deviations away: a plain normal.
  nn::Init weight{nn::Init::normal, 0.02};
  BlockNames names{};
};

// fc2(act(fc1(x))) + residual, which may be empty, or its gated forms, x (..., dim) -> (..., dim);
// of the options the names, hidden, mlp_bias, activation, gate, dropout and weight count.
struct Mlp {
  Mlp(const nn::Scope&, int64_t dim, const BlockOptions&);
  Tensor operator()(const Tensor& x, const nn::Call&, const Tensor& residual = {}) const;

 private:
  nn::Linear fc1_;
  std::optional<nn::Linear> value_;  // fc1_x
  nn::Linear fc2_;
  Activation activation_;
  Gate gate_;
  double dropout_;
};

// Rotary positions (Su et al. 2021, arXiv 2104.09864), halves turned against each other:
// t cos + [-t2, t1] sin for the halves t1, t2 of a row. Tables (tokens, width of a head); the minus
// is in `sin`.
struct Rotary {
  Tensor cos, sin;
  Tensor turn(const Tensor& x) const;  // (n, heads, tokens, width)
};

struct SelfAttention {
  SelfAttention(const nn::Scope&, const BlockOptions&);
  // (n, tokens, dim) -> the same, or what only the first `queries` > 0 tokens see; + residual.
  Tensor operator()(const Tensor& x, const Rotary* = nullptr, int64_t queries = 0,
                    const Tensor& residual = {}) const;

 private:
  int heads_;
  bool causal_;
  Tensor weight_, bias_, q_bias_, k_bias_, v_bias_;
  std::optional<nn::LayerNorm> q_norm_, k_norm_;
  nn::Linear proj_;
  Tensor bias() const;
  Tensor project(const Tensor& x, int64_t begin, int64_t end) const;
};

struct Block {
  Block(const nn::Scope&, const BlockOptions&);
  // `first` > 0: only so many tokens of the result, without the work for the others.
  Tensor operator()(const Tensor& x, const nn::Call&, const Rotary* = nullptr,
                    int64_t first = 0) const;
  bool drops(const nn::Call& call) const { return call.drops(dropout_); }

 private:
  nn::LayerNorm norm1_;
  SelfAttention attention_;
  Tensor scale1_;
  nn::LayerNorm norm2_;
  Mlp mlp_;
  Tensor scale2_;
  double dropout_, drop_path_;
};

// blocks.0, blocks.1 ..: their drop_path grows linearly from 0 to the given one in the last (Huang
// et al. 2016).
std::vector<Block> make_blocks(const nn::Scope&, int depth, const BlockOptions&);

// x (n, tokens, dim) through all blocks, each announced as "<tap>.0" and so on. `first` > 0: the
// caller reads so many tokens of the last, the class token for example; a twelfth of a network of
// twelve blocks is not computed then. `all`, the last block's whole output, is there when `first`
// is 0, wanted by its tap or asked for by `all`: computed beside, so that asking changes no bit.
struct Tokens {
  Tensor first, all;
};
Tokens run_blocks(const std::vector<Block>&, Tensor x, const std::string& tap, const nn::Call&,
                  int64_t first, bool all = false, const Rotary* = nullptr);

}  // namespace pupil::models
