#include "models.h"

namespace pupil::models {
namespace {

struct Perceptron {
  std::vector<nn::Linear> layers;
  std::optional<nn::Linear> head;
  Tensor mean, deviation;  // of the inputs; empty: as they are
  int64_t inputs;

  Perceptron(const MlpConfig& config, const nn::Scope& scope) : inputs(config.inputs) {
    if (config.standardize) {
      mean = scope.buffer("input_mean", {inputs}, {nn::Init::zeros});
      deviation = scope.buffer("input_std", {inputs}, {nn::Init::ones});
    }
    int64_t width = inputs;
    for (int64_t hidden : config.hidden) {
      layers.emplace_back(scope / "layers" / int(layers.size()), width, hidden);
      width = hidden;
    }
    if (config.classes) head.emplace(scope / "head", width, config.classes);
  }

  Output operator()(const Tensor& input, const nn::Call& call) const {
    int64_t n = input.rank() ? input.dim(0) : 0;
    if (n < 1 || input.numel() != n * inputs)
      fail_input("mlp: rows of ", inputs, " values expected, got ", input.shape());
    Tensor x = view(to_strided(input), {n, inputs});
    if (mean) x = div(sub(x, mean.to(x.dtype())), deviation.to(x.dtype()));
    for (size_t k = 0; k < layers.size(); k++) {
      x = relu(layers[k](x));
      call.see(concat("layers.", k), x);
    }
    return {head ? (*head)(x) : x, x};
  }

  // Mean and unbiased deviation of each input, in f64.
  void fit(const Tensor& samples) const {
    int64_t n = samples.dim(0);
    std::vector<double> x = samples.values(), m(static_cast<size_t>(inputs)), s = m;
    size_t d = m.size();
    for (size_t i = 0; i < x.size(); i++) m[i % d] += x[i] / double(n);
    for (size_t i = 0; i < x.size(); i++) s[i % d] += (x[i] - m[i % d]) * (x[i] - m[i % d]);
    for (double& v : s) {
      v = n > 1 ? std::sqrt(v / double(n - 1)) : 0;
      if (!(v > 0)) v = 1;
    }
    copy_into(mean, from(std::span<const double>(m), {inputs}));
    copy_into(deviation, from(std::span<const double>(s), {inputs}));
  }
};

}  // namespace

Model make_mlp(const MlpConfig& config, const nn::Scope& scope) {
  if (config.inputs < 1)
    fail_input("model mlp: inputs= is missing: how many values has a row of the data?");
  for (int64_t width : config.hidden)
    if (width < 1) fail_input("model mlp: a hidden layer of width ", width);
  auto net = std::make_shared<Perceptron>(config, scope);
  Model model;
  model.classes = config.classes;
  model.width = config.hidden.empty() ? config.inputs : config.hidden.back();
  model.inputs = config.inputs;
  model.head = "head";
  for (size_t k = 0; k < config.hidden.size(); k++) model.taps.push_back(concat("layers.", k));
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  if (config.standardize) model.fit_inputs = [net](const Tensor& x) { net->fit(x); };
  return model;
}

}  // namespace pupil::models
