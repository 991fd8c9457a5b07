#include "nn.h"

namespace pupil::nn {

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

BatchNorm::BatchNorm(Scope scope, int64_t channels, double eps, double momentum)
    : weight(scope.param("weight", {channels}, {Init::ones})),
      bias(scope.param("bias", {channels}, {Init::zeros})),
      running_mean(scope.buffer("running_mean", {channels}, {Init::zeros})),
      running_var(scope.buffer("running_var", {channels}, {Init::ones})),
      num_batches_tracked(scope.counter("num_batches_tracked")),
      eps(eps),
      momentum(momentum) {}

Tensor BatchNorm::operator()(const Tensor& x, const Call& call, bool relu, const Tensor& residual) {
  if (call.train) ++*num_batches_tracked.data<int64_t>();
  return batch_norm(x, weight, bias, running_mean, running_var,
                    {call.train, momentum, eps, relu, residual});
}

LayerNorm::LayerNorm(Scope scope, int64_t channels, double eps)
    : weight(scope.param("weight", {channels}, {Init::ones})),
      bias(scope.param("bias", {channels}, {Init::zeros})),
      eps(eps) {}

Attention::Attention(Scope scope, int64_t dim, int heads, bool qkv_bias, Init weight)
    : qkv(scope / "qkv", dim, 3 * dim, weight, {Init::zeros}, qkv_bias),
      proj(scope / "proj", dim, dim, weight, {Init::zeros}),
      heads(heads) {}

Tensor Attention::operator()(const Tensor& x) const { return proj(qkv_attention(qkv(x), heads)); }

PatchEmbed::PatchEmbed(Scope scope, int64_t channels, int64_t dim, int patch)
    : weight(scope.param("weight", {dim, channels, patch, patch},
                         fan_in_uniform(channels * patch * patch))),
      bias(scope.param("bias", {dim}, fan_in_uniform(channels * patch * patch))),
      patch(patch) {}

Tensor PatchEmbed::operator()(const Tensor& images) const {
  return linear(patches(images, patch),
                view(weight, {weight.dim(0), weight.numel() / weight.dim(0)}), bias);
}

}  // namespace pupil::nn
