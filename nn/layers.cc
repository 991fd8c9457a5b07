#include "../tensor/memory.h"
#include "../tensor/ops/convolution.h"
#include "../tensor/runtime.h"
#include "nn.h"

namespace pupil::nn {

bool Call::drops(double rate) const {
  if (!train || rate <= 0) return false;
  PUPIL_CHECK(rng, "dropout in training needs Call::rng");
  return true;
}

Tensor Call::dropout(const Tensor& x, double rate) const {
  return drops(rate) ? pupil::dropout(x, rate, rng->next()) : x;
}

Tensor Call::drop_path(const Tensor& x, double rate) const {
  return drops(rate) ? pupil::drop_path(x, rate, rng->next()) : x;
}

Init fan_in_uniform(int64_t fan_in) {
  return {Init::uniform, fan_in ? 1 / std::sqrt(double(fan_in)) : 0};
}

Init kaiming_normal(int64_t fan) { return {Init::normal, std::sqrt(2.0 / double(fan))}; }

Linear::Linear(Scope scope, int64_t in, int64_t out, bool bias)
    : Linear(scope, in, out, fan_in_uniform(in), fan_in_uniform(in), bias) {}

Linear::Linear(Scope scope, int64_t in, int64_t out, Init weight_init, Init bias_init,
               bool has_bias)
    : weight(scope.param("weight", {out, in}, weight_init)) {
  if (has_bias) bias = scope.param("bias", {out}, bias_init);
}

Conv2d::Conv2d(Scope scope, int64_t in, int64_t out, int kernel, ConvOptions o, bool has_bias,
               Init weight_init)
    : weight(scope.param("weight", {out, in / o.groups, kernel, kernel}, weight_init)), options(o) {
  if (has_bias) bias = scope.param("bias", {out}, fan_in_uniform(in / o.groups * kernel * kernel));
}

BatchNorm::BatchNorm(Scope scope, int64_t channels, double eps, double momentum, Init init)
    : weight(scope.param("weight", {channels}, init)),
      bias(scope.param("bias", {channels}, {Init::zeros})),
      running_mean(scope.buffer("running_mean", {channels}, {Init::zeros})),
      running_var(scope.buffer("running_var", {channels}, {Init::ones})),
      num_batches_tracked(scope.counter("num_batches_tracked")),
      eps(eps),
      momentum(momentum) {}

Tensor BatchNorm::operator()(const Tensor& x, const Call& call, Activation activation,
                             const Tensor& residual) {
  if (call.train) ++*num_batches_tracked.data<int64_t>();
  return batch_norm(x, weight, bias, running_mean, running_var,
                    {call.train, momentum, eps, activation, residual});
}

Tensor conv_norm(const Conv2d& conv, BatchNorm& norm, const Tensor& x, const Call& call,
                 Activation activation, const Tensor& residual) {
  return conv_norm({{conv, norm, activation}}, x, call, residual);
}

namespace {

ConvLayer fold(const NormedConv& unit) {
  auto& [conv, norm, activation] = unit;
  Tensor factor = div(norm.weight, sqrt(add_scalar(norm.running_var, norm.eps)));
  Tensor weight = mul(conv.weight, view(factor, {factor.dim(0), 1, 1, 1}));
  Tensor shift = conv.bias ? sub(norm.running_mean, conv.bias) : norm.running_mean;
  return {weight, sub(norm.bias, mul(shift, factor)), conv.options, activation, {}};
}

}  // namespace

Tensor conv_norm(const std::vector<NormedConv>& layers, const Tensor& x, const Call& call,
                 const Tensor& residual) {
  bool recorded = false;
  auto records = [&](const Tensor& t) { recorded |= grad_enabled() && t && t.requires_grad(); };
  records(x), records(residual);
  for (auto& [conv, norm, activation] : layers)
    records(conv.weight), records(conv.bias), records(norm.weight), records(norm.bias);
  if (call.train || recorded || plain_mode() || !x.numel()) {
    if (layers.size() == 1)
      return layers[0].norm(layers[0].conv(x), call, layers[0].activation, residual);
    Tensor y = x;
    for (auto& layer : layers)  // those before the first that is recorded are folded
      y = conv_norm({layer}, y, call, &layer == &layers.back() ? residual : Tensor());
    return y;
  }
  NoGrad unrecorded;
  std::vector<ConvLayer> folded;
  for (auto& layer : layers)  // who observes the call is told of the folding too
    folded.push_back(call.prepared && !observed() ? call.prepared->folded(layer) : fold(layer));
  return conv2d_chain(x, folded, residual);
}

ConvLayer Prepared::folded(const NormedConv& unit) {
  std::shared_ptr<ConvLayer>& made =
      made_[{unit.conv.weight.pointer(), unit.norm.running_var.pointer()}];
  if (!made) {
    ModelScope model;
    made = std::make_shared<ConvLayer>(fold(unit));
    made->prepared = std::make_shared<PreparedKernels>();
  }
  ConvLayer layer = *made;
  layer.options = unit.conv.options;
  layer.activation = unit.activation;
  return layer;
}

LayerNorm::LayerNorm(Scope scope, int64_t channels, double eps)
    : weight(scope.param("weight", {channels}, {Init::ones})),
      bias(scope.param("bias", {channels}, {Init::zeros})),
      eps(eps) {}

GroupNorm::GroupNorm(Scope scope, int64_t channels, int groups, double eps)
    : weight(scope.param("weight", {channels}, {Init::ones})),
      bias(scope.param("bias", {channels}, {Init::zeros})),
      groups(groups),
      eps(eps) {}

Embedding::Embedding(Scope scope, int64_t rows, int64_t width, Init init)
    : weight(scope.param("weight", {rows, width}, init)) {}

namespace {

// Freezes the layer; alpha / rank.
template <class Layer>
double low_rank(const Scope& scope, const Layer& base, int64_t rank, double alpha) {
  if (rank < 1) fail_input("lora: the rank is ", rank, "; it must be at least 1");
  for (const Tensor& t : {base.weight, base.bias})
    if (t) scope.store.freeze(t.name());
  return alpha / double(rank);
}

}  // namespace

LoraLinear::LoraLinear(Scope scope, const Linear& layer, int64_t rank, double alpha)
    : base(layer), factor(low_rank(scope, layer, rank, alpha)) {
  int64_t out = base.weight.dim(0), in = base.weight.dim(1);
  a = scope.param("lora_A", {rank, in}, fan_in_uniform(in));
  b = scope.param("lora_B", {out, rank}, {Init::zeros});
}

Tensor LoraLinear::change(const Tensor& x) const {
  return linear(scale(linear(x, a, {}), factor), b, {});
}

Tensor LoraLinear::merged() const { return add(base.weight, scale(matmul(b, a), factor)); }

LoraConv2d::LoraConv2d(Scope scope, const Conv2d& layer, int64_t rank, double alpha)
    : base(layer), factor(low_rank(scope, layer, rank, alpha)) {
  const ConvOptions& o = base.options;
  if (!(o.dilation == Pair(1)) || rank % o.groups)
    fail_input("lora: a convolution of dilation ", o.dilation.h, " x ", o.dilation.w, " and ",
               o.groups, " groups cannot have rank ", rank,
               "; the dilation must be 1 and the groups divide the rank");
  const Shape& w = base.weight.shape();
  int64_t in = w[1] * o.groups;
  a = scope.param("lora_A", {rank, in, w[2], w[3]}, fan_in_uniform(in * w[2] * w[3]));
  b = scope.param("lora_B", {w[0], rank / o.groups, 1, 1}, {Init::zeros});
}

Tensor LoraConv2d::change(const Tensor& x) const {
  const ConvOptions& o = base.options;
  Tensor low = conv2d(x, a, {}, {.stride = o.stride, .padding = o.padding});
  return conv2d(scale(low, factor), b, {}, {.groups = o.groups, .channels_last = o.channels_last});
}

Tensor LoraConv2d::merged() const {
  if (base.options.groups > 1)
    fail_input("lora: no single convolution of ", base.options.groups,
               " groups does what this one and its change do");
  int64_t rank = a.dim(0);
  Tensor change = matmul(view(b, {b.dim(0), rank}), view(a, {rank, a.numel() / rank}));
  return add(base.weight, scale(view(change, base.weight.shape()), factor));
}

PatchEmbed::PatchEmbed(Scope scope, int64_t channels, int64_t dim, int patch, bool has_bias)
    : weight(scope.param("weight", {dim, channels, patch, patch},
                         fan_in_uniform(channels * patch * patch))),
      bias(has_bias ? scope.param("bias", {dim}, fan_in_uniform(channels * patch * patch))
                    : Tensor()),
      patch(patch) {}

Tensor PatchEmbed::operator()(const Tensor& images) const {
  return linear(patches(images, patch),
                view(weight, {weight.dim(0), weight.numel() / weight.dim(0)}), bias);
}

}  // namespace pupil::nn
