// Optimizers over flat slabs: the parameters of a group, their gradients and their state each lie
// in one block of memory, so that a step is one fused pass.
#pragma once
#include "nn.h"

namespace pupil::nn {

struct Group {
  std::vector<std::string> names;  // full parameter names
  double lr = 1e-3, weight_decay = 0;
};

enum class Algorithm { sgd, adam, adamw };

// Sources: torch.optim.SGD, Adam, AdamW (2.x); formulas in optim.cc.
struct OptimizerOptions {
  Algorithm algorithm = Algorithm::sgd;
  double momentum = 0, dampening = 0;
  bool nesterov = false;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
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

  // Scales all gradients by min(1, max_norm / (norm + 1e-6)); returns the norm before. Summed in
  // f64.
  double clip_grad_norm(double max_norm);

  // State by name ("<param>.momentum_buffer", "<param>.exp_avg", "<param>.exp_avg_sq",
  // "<param>.step").
  std::vector<std::pair<std::string, Tensor>> state() const;
  void load_state(const std::function<Tensor(const std::string&)>& read);
  std::vector<Group>& groups();

 private:
  struct Slab;
  std::vector<Group> groups_;
  std::vector<Slab> slabs_;
  OptimizerOptions options_;
};

// Learning-rate factors; t counts steps (or epochs) from 0.
struct Schedule {
  enum Kind { constant, multistep, cosine } kind = constant;
  int64_t total = 1;   // cosine: length including warm-up
  int64_t warmup = 0;  // linear from warmup_start to 1, then the schedule of t - warmup
  double warmup_start = 0;
  double floor = 0;                   // cosine: lowest factor
  double cycles = 0.5;                // cosine: waves until `total`; half a wave ends at `floor`
  std::vector<int64_t> milestones{};  // multistep: gamma for each milestone <= t
  double gamma = 0.1;
  double operator()(int64_t t) const;
};

}  // namespace pupil::nn
