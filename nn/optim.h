// Optimizers over flat slabs: the parameters of a group, their gradients and their state each lie
// in one block of memory, so that a step is one fused pass.
#pragma once
#include "nn.h"

namespace pupil::nn {

struct Group {
  std::vector<std::string> names;  // full parameter names
  double lr = 1e-3, weight_decay = 0;
};

enum class Algorithm { sgd, adam, adamw, rmsprop, lamb };

// Sources: torch.optim.SGD, Adam, AdamW, RMSprop (2.x), timm 1.0 Lamb; formulas in optim.cc.
struct OptimizerOptions {
  Algorithm algorithm = Algorithm::sgd;
  double momentum = 0, dampening = 0;
  bool nesterov = false;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double alpha = 0.99;       // rmsprop
  bool centered = false;     // rmsprop
  double max_grad_norm = 1;  // lamb: gradients are divided by max(1, norm / this); 0: they are not
  // lamb: the ratio |p| / |update| at most 1; used without weight decay too; m adds (1 - beta1) g
  bool trust_clip = false, always_adapt = false, grad_averaging = true;
};

class Optimizer {
 public:
  // Moves the trainable parameters of the groups into slabs (their tensors keep their identity) and
  // gives each a gradient buffer.
  Optimizer(Store&, std::vector<Group>, OptimizerOptions);
  ~Optimizer();
  Optimizer(const Optimizer&) = delete;

  // One update of all parameters that received a gradient since zero_grad(); the others keep value
  // and state, as PyTorch's do when their grad is None. lr_scale multiplies every group's lr.
  void step(double lr_scale = 1);
  void zero_grad();  // O(parameters) flags, no memory traffic: the first gradient overwrites

  // From now on: of sgd and rmsprop the momentum (not 0 where it was not), of the others beta1.
  void set_momentum(double);

  // Scales all gradients by min(1, max_norm / (norm + 1e-6)); returns the norm before. Summed in
  // f64.
  double clip_grad_norm(double max_norm);

  // State under PyTorch's names ("<param>.momentum_buffer", "<param>.exp_avg", "<param>.step" ..).
  std::vector<std::pair<std::string, Tensor>> state() const;
  void load_state(const std::function<Tensor(const std::string&)>& read);
  std::vector<Group>& groups();

 private:
  struct Slab;
  double grad_norm() const;
  void each_gradient(const std::function<void(const Tensor&)>&) const;
  std::vector<Group> groups_;
  std::vector<Slab> slabs_;
  OptimizerOptions options_;
};

// A moving average of weights after each step t = 1, 2, ..: with s = t - after - 1 its decay is 0
// for s <= 0 (a copy), else `decay`, with warm-up 1 - (1 + s / warmup_gamma)^-warmup_power between
// min_decay and decay. timm 1.0 ModelEmaV3.
struct EmaOptions {
  double decay = 0.9999, min_decay = 0;
  int64_t after = 0;
  bool warmup = false;
  double warmup_gamma = 1, warmup_power = 2.0 / 3;
};
class Ema {
 public:
  Ema(std::vector<Tensor> weights, EmaOptions);  // f32 or f64; the model's own tensors
  double update(int64_t t);                      // after step t; returns the decay
  void exchange();  // the weights become the averages, the averages the weights
  const std::vector<Tensor>& averages() const { return averages_; }

 private:
  std::vector<Tensor> weights_, averages_;
  EmaOptions options_;
};

// Learning-rate factors; t counts steps (or epochs) from 0.
struct Schedule {
  enum Kind { constant, multistep, cosine, linear } kind = constant;
  int64_t total = 1;   // cosine, linear (to 0): length including warm-up
  int64_t warmup = 0;  // linear from warmup_start to 1, then the schedule of t - warmup
  double warmup_start = 0;
  double floor = 0;                   // cosine: lowest factor
  double cycles = 0.5;                // cosine: waves until `total`; half a wave ends at `floor`
  std::vector<int64_t> milestones{};  // multistep: gamma for each milestone <= t
  double gamma = 0.1;
  double operator()(int64_t t) const;
};

// Loshchilov and Hutter 2017 (arXiv 1608.03983) as timm has it: cycle i has length *
// length_factor^i steps and falls from peak_factor^i to `floor` with (1 + cos(pi (u / its
// length)^power)) / 2; after `limit` cycles: floor.
struct CosineCycles {
  double length = 1, length_factor = 1, peak_factor = 1, power = 1, floor = 0;
  int64_t limit = 1;
  int64_t warmup = 0;  // linear from warmup_start to 1
  double warmup_start = 0;
  bool after_warmup = false;  // u counts from the end of the warm-up; false: from t = 0 too
  double operator()(int64_t t) const;
};

// Smith and Topin 2019 (arXiv 1708.07120) as torch.optim.lr_scheduler.OneCycleLR has it: from start
// to 1 at step rise * total - 1, then to start * end from total - 1 on; with three_phase back to
// start at 2 rise total - 2 in between. The momentum moves the other way.
struct OneCycle {
  int64_t total = 1;
  double rise = 0.3, start = 1 / 25.0, end = 1e-4;
  bool cosine = true, three_phase = false;  // cosine: half a wave from value to value, else a line
  double low_momentum = 0.85, high_momentum = 0.95;
  double operator()(int64_t t) const;
  double momentum(int64_t t) const;

 private:
  double between(int64_t t, double initial, double peak, double last) const;
};

}  // namespace pupil::nn
