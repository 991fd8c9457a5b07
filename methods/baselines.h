// What AFT is compared with in its paper (Qiu et al. 2024, arXiv 2406.07337): ablations with a
// linear map, and the baselines kd_feature, rkd, factor transfer and B-Tuning, each as the official
// code has them (amazon-science/adaptive-feature-transfer@c0ce571). One file per method.
// phi (n, p): student features. psi (n, q): teacher features, which receive no gradient and must be
// finite. Results are scalars in f32, or f64 for f64 parameters and features, not yet times beta.
// All throw Error for shapes that do not fit.
#pragma once
#include "../nn/nn.h"

namespace pupil::methods {

// aft_no_kernel.cc -- the ablation without kernel: mean over n * p of
// ((t - mean_batch t) - (phi - mean_batch phi))^2 with t = psi V^T + c, V (p, q).
Tensor aft_no_kernel_loss(const Tensor& phi, const Tensor& psi, const nn::Linear& proj);

// kernel_kd.cc -- the map on the student's side: delta of aft.h between phi W^T + b, W (p, p), and
// unweighted psi, linear kernel.
Tensor kernel_kd_delta(const Tensor& phi, const Tensor& psi, const nn::Linear& proj);

// kd_feature.cc -- feature regression: mean over n * q of (phi V^T + c - psi)^2, V (q, p). With
// several modalities there is a map for each, phi and psi are cut into the maps' widths: the mean
// of their mean square errors.
Tensor kd_feature_loss(const Tensor& phi, const Tensor& psi, const std::vector<nn::Linear>& maps);

// rkd.cc -- relational knowledge distillation: (distance + 2 angle) / 2.
Tensor rkd_loss(const Tensor& phi, const Tensor& psi);
// The same from ordinary ops, by its two parts: the definition that it is tested against.
Tensor rkd_distance_plain(const Tensor& phi, const Tensor& psi);
Tensor rkd_angle_plain(const Tensor& phi, const Tensor& psi);

// factor_transfer.cc -- the student's translation t (n, f) against the teachers' factors (n, f):
// mean over rows of sum |t / |t| - factors / |factors||.
struct Translator {  // p -> p, ReLU, p -> f, ReLU, f -> f; the last weight starts at 0
  Translator(const nn::Scope&, int64_t width, int64_t factors);
  Tensor operator()(const Tensor& phi) const;
  nn::Linear first, second, third;
};
Tensor factor_transfer_loss(const Tensor& translated, const Tensor& factors);

// The paraphraser: d -> d -> h -> h with ReLU after each, h = floor(d / 2), and back,
// h -> h -> d -> d with ReLU after the first two.
struct Autoencoder {
  Autoencoder(const nn::Scope&, int64_t width);
  Tensor encode(const Tensor& x) const;
  Tensor decode(const Tensor& code) const;
  std::vector<nn::Linear> encoder, decoder;
};
struct AutoencoderOptions {
  int64_t epochs = 500, batch = 1024, patience = 10;  // patience: epochs without improvement
  double lr = 3e-4;
};
struct AutoencoderFit {
  double best_loss = 0;  // mean square error on the held-out rows
  int64_t epochs = 0;    // that were run
};
// Adam on the mean square error of `rows` (N, d) in their order; leaves the weights that were best
// on `held_out` (M, d). `store` holds the parameters of the autoencoder and no others.
AutoencoderFit fit_autoencoder(nn::Store& store, const Autoencoder&, const Tensor& rows,
                               const Tensor& held_out, const AutoencoderOptions& = {},
                               const std::function<void(const AutoencoderFit&)>& each_epoch = {});

// btuning.cc -- LogME (You et al. 2021, arXiv 2102.11005): the evidence of a linear model with a
// Gaussian prior, features (N, D), labels i64 (N); always in f64. classes 0: the largest label + 1,
// at most 2^20.
struct LogMe {
  double score = 0;    // mean evidence over the classes
  Tensor weights;      // posterior means mu, f64 (classes, D)
  Tensor alpha, beta;  // f64 (classes)
};
LogMe logme(const Tensor& features, const Tensor& labels, int64_t classes = 0);

// B-Tuning (You et al. 2021, arXiv 2110.10545): mean over n * classes of
// (phi mu_student^T - sum_m weights_m psi_m mu_m^T)^2, psi cut into the widths of the mu_m
// (classes, d_m).
Tensor btuning_loss(const Tensor& phi, const Tensor& psi, const std::vector<double>& weights,
                    const std::vector<Tensor>& mu, const Tensor& mu_student);
// softmax(scores / temperature)
std::vector<double> btuning_weights(const std::vector<double>& scores, double temperature);

}  // namespace pupil::methods
