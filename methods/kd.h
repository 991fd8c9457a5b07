// Knowledge distillation by logits: Hinton, Vinyals and Dean 2015, arXiv 1503.02531, eq. 1, with
// the reductions of the public code bases under their names.
#pragma once
#include "../tensor/ops.h"

namespace pupil::methods {

// With p = softmax(z / T), KL = sum over classes of p_t (log p_t - log p_s), B rows, K classes:
//   batchmean     T^2 / B     sum KL                       RepDistiller, mdistiller
//   mean          T^2 / (B K) sum KL                       DeiT soft
//   sum           T^2         sum KL
//   torchdistill  alpha CE(z_s, y) + beta T^2 / B sum KL; with alpha 0 or unset, or no labels:
//                 1 / B sum KL without T^2 and without beta
//   cls_kd        -alpha T^2 / B sum p_t log p_s, plus (1 - alpha) CE(z_s, y) when there are labels
//   mse_of_probs  T^2 / (B K) sum (p_s - p_t)^2            KD_Lib's "vanilla"
enum class KdReduction { batchmean, mean, sum, torchdistill, cls_kd, mse_of_probs };

struct KdOptions {
  double temperature = 4;
  KdReduction reduction = KdReduction::batchmean;
  // torchdistill and cls_kd only; beta is 1 - alpha when empty. cls_kd's alpha is 1 when empty.
  std::optional<double> alpha, beta;
  // Rows to (z - mean) / (eps + unbiased deviation) first, of both nets, before the division by T
  // (Sun et al. 2024, "Logit Standardization in Knowledge Distillation").
  bool logit_standardization = false;
  double eps = 1e-7;
};

// student, teacher: logits (n, classes) of one floating dtype each; labels: as of
// cross_entropy, or empty. A
// scalar in f32, or f64 for an f64 student. The teacher receives no gradient. Throws Error for
// unequal shapes, T <= 0 and non-finite teacher logits.
Tensor kd_loss(const Tensor& student, const Tensor& teacher, const Tensor& labels,
               const KdOptions& = {});

// The same from ordinary ops: the definition that kd_loss is tested against.
Tensor kd_loss_plain(const Tensor& student, const Tensor& teacher, const Tensor& labels,
                     const KdOptions& = {});

// Each row (z - mean) / (eps + unbiased deviation), its mean and its deviation, (n, 1). The gradient
// of a deviation of 0 is 0.
struct StandardizedLogits {
  Tensor values, mean, deviation;
};
StandardizedLogits standardize_logits(const Tensor& logits, double eps = 1e-7);

KdReduction kd_reduction(const std::string& name);  // InputError with the nearest name

}  // namespace pupil::methods
