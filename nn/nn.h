// Layers are plain structs with operator(); parameters are found by name in a Store.
#pragma once
#include "../data/weights.h"
#include "../tensor/ops.h"

namespace pupil {
struct ConvLayer;
}

namespace pupil::nn {

struct Init {
  enum Kind { zeros, ones, constant, uniform, normal } kind = zeros;
  double a = 0;  // constant: the value; uniform: +-a; normal: standard deviation
};

// Turns a stored tensor of another shape into the declared one (position embeddings of another
// grid), or answers an empty Tensor: then the shapes simply differ.
using Adapt = std::function<Tensor(const Tensor& stored)>;

struct Param {
  std::string name;  // "blocks.3.attn.qkv.weight"
  Tensor value;
  bool trainable = true;
  bool buffer = false;  // running statistics: saved, never trained
};

// Every parameter and buffer of one network, in declaration order.
class Store {
 public:
  explicit Store(uint64_t seed, DType = DType::f32, Device = {});
  // Names and shapes; no memory is touched, no value defined. To count what a model has and does.
  static Store blueprint();

  // From now on declared parameters are read from `weights` where it has their name; names that
  // match a pattern of `fresh` ("head.*") are initialised as if it had not. Null: no source.
  void source(std::shared_ptr<const data::Weights> weights, std::vector<std::string> fresh = {});
  // The same for a network that stays as it is: where the file has a parameter's type it is the
  // mapped file itself, and a program that writes to it ends.
  void borrow(std::shared_ptr<const data::Weights> weights);
  // Throws InputError that lists the missing, unexpected and mis-shaped names of what was declared
  // since source(), and suggests head = "new".
  void require_complete() const;

  Tensor declare(const std::string& name, const Shape&, Init, bool buffer, const Adapt& = {});
  // An i64 buffer of rank 0 on the host, 0 at first. A source need not have it.
  Tensor declare_counter(const std::string& name);
  std::vector<Param>& params() { return params_; }
  const std::vector<Param>& params() const { return params_; }
  Param* find(std::string_view name);
  void freeze(std::string_view pattern);  // "blocks.*"; throws InputError when nothing matches
  int64_t count() const;  // trainable and frozen parameter elements, buffers not counted
  uint64_t seed() const { return seed_; }

 private:
  uint64_t seed_;
  DType dtype_;
  Device device_;
  bool blueprint_ = false, borrowed_ = false;
  std::vector<Param> params_;
  std::shared_ptr<const data::Weights> weights_;
  std::vector<std::string> fresh_, missing_, mis_shaped_;
  size_t declared_before_source_ = 0;

  Tensor add(const std::string& name, Tensor value, bool buffer);
};

bool matches(std::string_view pattern, std::string_view name);  // * matches any run of characters

// A path into a store: (scope / "blocks" / 3 / "attn").param("weight", ...). Initial values depend
// on the full name and the store's seed, not on the order of construction.
struct Scope {
  Store& store;
  std::string path;
  explicit Scope(Store& s, std::string p = "") : store(s), path(std::move(p)) {}
  Scope operator/(std::string_view) const;
  Scope operator/(int) const;
  Tensor param(std::string_view name, const Shape&, Init, const Adapt& = {}) const;
  Tensor buffer(std::string_view name, const Shape&, Init) const;
  Tensor counter(std::string_view name) const;
};

// Intermediate values of a forward pass, kept for those who asked by name.
class Taps {
 public:
  Taps() = default;
  explicit Taps(std::vector<std::string> wanted) : wanted_(std::move(wanted)) {}
  void see(std::string_view name, const Tensor&);  // called by models; a no-op unless wanted
  bool wants(std::string_view name) const;
  // Strided, f32 where it was bf16; throws Error when the model never saw it.
  Tensor operator[](std::string_view name) const;

 private:
  std::vector<std::string> wanted_;
  std::map<std::string, Tensor, std::less<>> seen_;
};

struct NormedConv;

// What is computed from parameters alone, kept from call to call: norms folded into convolutions,
// and the kernels of oneDNN's and Winograd's products in the order in which they are multiplied.
// For a network that is only asked: its parameters must stay as they are while this lives. One
// thread at a time.
class Prepared {
 public:
  // The norm folded into the convolution, once for these parameters. Options and activation are of
  // this call: they may follow from the image's size and from what the caller wants to see.
  ConvLayer folded(const NormedConv&);

 private:
  // Of a convolution and of its norm; held here, so that no other tensor takes their place.
  using Parameters = std::pair<std::shared_ptr<TensorImpl>, std::shared_ptr<TensorImpl>>;
  std::map<Parameters, std::shared_ptr<ConvLayer>> made_;
};

struct Call {  // passed down explicitly; there is no global mode
  bool train = false;
  Rng* rng = nullptr;  // needed by dropout and stochastic depth when train
  Taps* taps = nullptr;
  // Also tokens of a transformer's last block that no output depends on: published counts of
  // multiplications have them.
  bool every_token = false;
  Prepared* prepared = nullptr;

  // What a model announces; kept when somebody asked for it by this name.
  void see(std::string_view name, const Tensor& value) const {
    if (taps) taps->see(name, value);
  }
  bool wants(std::string_view name) const { return taps && taps->wants(name); }
  // In training with rate > 0; throws Error there without random numbers.
  bool drops(double rate) const;
  // The ops of dropout.cc with the next random numbers of this call; x unless drops(rate).
  Tensor dropout(const Tensor& x, double rate) const;
  Tensor drop_path(const Tensor& x, double rate) const;
};

// PyTorch's default of linear and convolution layers: uniform +-1/sqrt(fan_in), bias included.
Init fan_in_uniform(int64_t fan_in);
// He et al. 2015 (arXiv 1502.01852): normal with standard deviation sqrt(2 / fan).
Init kaiming_normal(int64_t fan);

struct Linear {
  Linear(Scope, int64_t in, int64_t out, bool bias = true);  // fan_in_uniform
  Linear(Scope, int64_t in, int64_t out, Init weight, Init bias, bool has_bias = true);
  Tensor operator()(const Tensor& x, const Tensor& residual = {}) const {
    return linear(x, weight, bias, residual);
  }
  Tensor weight, bias;
};

struct Conv2d {
  Conv2d(Scope, int64_t in, int64_t out, int kernel, ConvOptions, bool bias, Init weight);
  Tensor operator()(const Tensor& x) const { return conv2d(x, weight, bias, options); }
  Tensor weight, bias;
  ConvOptions options;
};

struct BatchNorm {
  BatchNorm(Scope, int64_t channels, double eps = 1e-5, double momentum = 0.1,
            Init weight = {Init::ones});
  // activation(batch_norm(x) + residual), the last two when asked for
  Tensor operator()(const Tensor& x, const Call&, Activation = Activation::none,
                    const Tensor& residual = {});
  Tensor weight, bias, running_mean, running_var, num_batches_tracked;
  double eps, momentum;
};

// activation(norm(conv(x)) + residual), the last two when asked for: the same as one after the
// other. In evaluation, where no gradient is wanted, the norm is folded into the convolution.
Tensor conv_norm(const Conv2d&, BatchNorm&, const Tensor& x, const Call&,
                 Activation = Activation::none, const Tensor& residual = {});
// Of one layer after the other, the residual at the last.
struct NormedConv {
  const Conv2d& conv;
  BatchNorm& norm;
  Activation activation;
};
Tensor conv_norm(const std::vector<NormedConv>&, const Tensor& x, const Call&,
                 const Tensor& residual = {});

struct LayerNorm {
  LayerNorm(Scope, int64_t channels, double eps = 1e-6);
  Tensor operator()(const Tensor& x) const { return layer_norm(x, weight, bias, eps); }
  Tensor weight, bias;
  double eps;
};

struct GroupNorm {
  GroupNorm(Scope, int64_t channels, int groups, double eps = 1e-5);
  Tensor operator()(const Tensor& x) const { return group_norm(x, groups, weight, bias, eps); }
  Tensor weight, bias;
  int groups;
  double eps;
};

struct Embedding {  // (rows, width), at first normal with deviation 1
  Embedding(Scope, int64_t rows, int64_t width, Init weight = {Init::normal, 1});
  Tensor operator()(const Tensor& index) const { return embedding(weight, index); }
  Tensor weight;
};

// Hu et al. 2021 (arXiv 2106.09685): a layer of the scope's store, frozen from now on, plus a
// trained change of low rank, y = base(x) + alpha / rank * B A x with lora_A uniform as the layer's
// own weight at first, lora_B zero. merged() is the weight of the one layer that does the same.
struct LoraLinear {
  LoraLinear(Scope, const Linear& base, int64_t rank, double alpha);
  Tensor change(const Tensor& x) const;  // without base(x): for dropout before it
  Tensor operator()(const Tensor& x) const { return add(base(x), change(x)); }
  Tensor merged() const;
  Linear base;
  Tensor a, b;  // (rank, in), (out, rank)
  double factor;
};

// The same of a convolution: A has its kernel, stride and padding and one group, B is 1 x 1 and has
// its groups. InputError for dilation, for a rank that the groups do not divide, and for merged()
// of several groups.
struct LoraConv2d {
  LoraConv2d(Scope, const Conv2d& base, int64_t rank, double alpha);
  Tensor change(const Tensor& x) const;
  Tensor operator()(const Tensor& x) const { return add(base(x), change(x)); }
  Tensor merged() const;
  Conv2d base;
  Tensor a, b;  // (rank, in, k, k), (out, rank / groups, 1, 1)
  double factor;
};

// Patches of p x p pixels, each through one linear map: a convolution of kernel and stride p whose
// weight keeps the shape (dim, channels, p, p). (n, c, h, w) -> (n, (h/p)(w/p), dim), row by row.
struct PatchEmbed {
  PatchEmbed(Scope, int64_t channels, int64_t dim, int patch, bool bias = true);
  Tensor operator()(const Tensor& images) const;
  Tensor weight, bias;
  int patch;
};

}  // namespace pupil::nn
