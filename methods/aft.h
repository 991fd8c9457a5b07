// Adaptive Feature Transfer: Qiu et al., ICML 2024, arXiv 2406.07337. The similarity matrix of the
// student's features within a batch should resemble that of the teachers' features, each teacher
// dimension with a learned weight. Code: amazon-science/adaptive-feature-transfer@c0ce571.
#pragma once
#include "../tensor/ops.h"

namespace pupil::methods {

enum class AftKernel { linear, rbf };
// How s weights the teacher features psi (n, q):
//   diag     psi * sigmoid(s), s (q)
//   dense    psi s, s (q, q)
//   product  psi * sigmoid(s) cut into blocks of teacher_widths, then the outer product of the
//            blocks of each row, flattened with the first index slowest; s (q)
enum class AftMap { diag, dense, product };

struct AftOptions {
  AftKernel kernel = AftKernel::linear;
  AftMap map = AftMap::diag;
  std::vector<int64_t> teacher_widths;  // of the concatenated teachers; only `product` needs them
  // Of a student of several modalities: `product` multiplies its features out in the same way.
  std::vector<int64_t> student_widths = {};
};

// delta = sqrt(mean (K - K')^2 + 1e-8) with K = kernel(phi), K' = kernel(map(psi, s)); not yet
// times beta. phi (n, p): student features; psi (n, q): teacher features, which receive no
// gradient; s as above, trained if it asks for a gradient, or empty: no weights. A scalar in f32,
// or f64 for f64 phi, computed in that dtype whatever the inputs' are. Throws Error for wrong
// shapes and non-finite psi.
Tensor aft_delta(const Tensor& phi, const Tensor& psi, const Tensor& s, const AftOptions& = {});

// The same from ordinary ops, step by step as in the paper: the definition that it is tested
// against.
Tensor aft_delta_plain(const Tensor& phi, const Tensor& psi, const Tensor& s,
                       const AftOptions& = {});

// Rows centred over the batch and divided by (norm + 1e-8), then <u_i, u_j> or exp(-|u_i - u_j|^2):
// (n, d) -> (n, n).
Tensor aft_kernel(const Tensor& x, AftKernel);
Tensor aft_map(const Tensor& psi, const Tensor& s, const AftOptions&);

AftKernel aft_kernel_named(const std::string&);  // InputError with the nearest name
AftMap aft_map_named(const std::string&);

}  // namespace pupil::methods
