// The rotation that carries one model's latents to another's: orthogonal Procrustes with a pull to
// the identity (Park et al., AAAI 2026, equations 10 to 12; Schoenemann 1966).
#pragma once
#include "../tensor/linalg.h"

namespace pupil::methods {

struct ProcrustesOptions {
  double beta = 500;           // pull to the identity, not divided by the number of rows
  bool rotation = false;       // det R = +1
  double truncate_ratio = -1;  // >= 0: only singular values above this share of the largest count,
                               // and R is no longer orthogonal
};

// R = argmin over orthogonal R of |T R - S|^2 + beta |R - I|^2 from the polar factor of
// P = T^T S + beta I, summed block by block in f64; the rows are not kept. beta = 0 is the limit of
// beta -> 0, which is unique where P is singular.
class Procrustes {
 public:
  explicit Procrustes(int64_t dim);
  void add(const Tensor& target, const Tensor& source);  // rows (n, dim) of the same images
  Tensor solve(const ProcrustesOptions& = {}) const;     // R (dim, dim) f64
  int64_t rows() const { return rows_; }

 private:
  Tensor product_;  // T^T S
  int64_t rows_ = 0;
};

// R of the standardised logits (n, M) of two models on the same unlabelled images. For a basis W
// (D, M) with orthonormal columns the latents' solution is W R W^T + I - W W^T, so that the basis
// of the other model is W R^T: latents are never formed.
Tensor logit_rotation(const Tensor& weak, const Tensor& strong, const ProcrustesOptions& = {});

}  // namespace pupil::methods
