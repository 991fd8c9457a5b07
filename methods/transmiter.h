// TransMiter: what fine-tuning did to a weak vision-language model is learned, without labels, as a
// small adapter on its logits; a rotation in closed form carries the adapter to a strong model.
// Park et al., AAAI 2026 (arXiv 2508.08604); code: mlvlab/TransMiter@f58085c. Where the two differ
// this follows the code.
//
// M logits: C task classes, then auxiliary ones (auxiliary_classes.h); D >= M latent dimensions; H
// hidden units.
#pragma once
#include "../nn/optim.h"
#include "../tensor/linalg.h"

namespace pupil::methods {

// How the adapter's basis W (D, M) is held.
//   expm    W = first M columns of base expm(A), A skew-symmetric and trained, base fixed
//   cayley  the same with the Cayley map: cheaper
//   frozen  W = first M columns of base, not trained
//   free    input and output basis are separate matrices, as in an official transferred file
enum class Basis { expm, cayley, frozen, free };
Basis basis_named(const std::string&);  // expm, cayley or frozen; InputError with the nearest name

struct AdapterOptions {
  int64_t logits = 1024, latent = 1024, hidden = 4096;  // M, D, H
  Basis basis = Basis::expm;
  double alpha = 1;  // factor of the MLP's branch
};

// Equations 5 and 6, with the standardisation of the code: x, mean, deviation = standardize(z),
// h = x W^T, y = (h + alpha MLP(h)) W, result y * deviation + mean. Parameters have the names of
// the official checkpoints, network.0.*.
class Adapter {
 public:
  // A new one begins as the identity on logits, after draw_base().
  Adapter(const nn::Scope&, const AdapterOptions&);
  // Turns the normal numbers that `base` begins as into a uniformly random rotation.
  void draw_base();

  Tensor operator()(const Tensor& logits) const;  // (n, M) -> (n, M)
  Tensor basis() const;                           // W (D, M); of `free` the input basis
  const AdapterOptions& options() const { return options_; }

  // The adapter for another model: R (M, M) is the solution of Procrustes on standardised logits.
  // `free`: both bases become W R^T, biases 0. Else: base becomes one with these first columns and
  // the skew-symmetric matrix 0.
  Adapter rotated(const nn::Scope& to, const Tensor& rotation, Basis) const;

 private:
  AdapterOptions options_;
  Tensor skew_, base_;                       // X (D, M), base (D, D)
  Tensor in_weight_, in_bias_, out_weight_;  // `free`
  nn::LayerNorm norm_;
  nn::Linear first_, second_;
};

struct ExtractionLossOptions {
  double temperature = 1, teacher_temperature = 0.5;  // tau, tau'
  double weight = 1;
  double mse_weight = 0;  // of mean ((pred - teacher) / 100)^2, off in the paper
};

// Equation 7: weight tau^2 tau' / n sum KL(softmax(teacher / (tau tau')) | softmax(pred / tau))
// over the first C columns of pred (n, M); teacher (n, C) is a constant. A scalar in f32, or f64
// for an f64 pred; the gradient of the other columns is 0.
Tensor extraction_loss(const Tensor& pred, const Tensor& teacher,
                       const ExtractionLossOptions& = {});
// The same from ordinary ops: the definition that it is tested against.
Tensor extraction_loss_plain(const Tensor& pred, const Tensor& teacher,
                             const ExtractionLossOptions& = {});

// logits + alpha * deviation of the row * normal if u > 0.5, else the logits: one u in [0, 1) for a
// batch (n, M), standard normal numbers (n, M).
Tensor logit_noise(const Tensor& logits, const Tensor& normal, double u, double alpha = 0.5);

// The factor of the learning rate at step k of `total`: (k + 1) / warmup while k < warmup (a real
// number: the last of these may exceed 1), then half a cosine wave to 0.
double warmup_cosine(int64_t step, double warmup, int64_t total);

// Row numbers (i64) of every batch of an epoch.
using Batches = std::function<std::vector<Tensor>(int64_t epoch)>;
// Each epoch another order of n rows; the last batch may be smaller.
Batches shuffled_batches(int64_t n, int64_t batch, uint64_t seed);

struct Curve {  // of every step
  std::vector<double> loss, lr;
};

struct ExtractionOptions {
  ExtractionLossOptions loss;
  double noise = 0.5;  // alpha of logit_noise; 0: none
  double lr = 1e-3, weight_decay = 1e-3;
  double warmup = 0.05;  // share of all steps
  int64_t epochs = 10;
  uint64_t seed = 0;                  // of the noise
  std::function<void()> before_step;  // may throw to stop; may be empty
};
// Trains the adapter in `store` so that it turns the weak model's zero-shot logits (n, M) into its
// fine-tuned ones (n, C). No labels.
Curve extract(nn::Store& store, const Adapter&, const Tensor& weak, const Tensor& tuned,
              const ExtractionOptions&, const Batches&);

struct PolishOptions {
  double lr = 1e-4, weight_decay = 1e-3;
  int64_t epochs = 50;
  std::vector<int64_t> columns;  // classes that compete; a label is a position here. Empty: all C
  std::function<void()> before_step;  // as of extract
};
// TransMiter+: cross-entropy on the adapted logits of the strong model, warm-up of a tenth of the
// steps. What is trained is what `store` does not freeze. labels i64 (n).
Curve polish(nn::Store& store, const Adapter&, const Tensor& strong, const Tensor& labels,
             int64_t classes, const PolishOptions&, const Batches&);

}  // namespace pupil::methods
