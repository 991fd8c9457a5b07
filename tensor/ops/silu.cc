// x sigma(beta x): SiLU (Elfwing et al. 2018, arXiv 1702.03118) with beta = 1, the quick form of
// GELU (Hendrycks and Gimpel 2016, section 2) with beta = 1.702. e = exp(-|u|) never overflows.
#include "swish.h"
#include "unary.h"

namespace pupil {

template <bool quick>
struct Swish {
  static constexpr bool saves_x = true, saves_y = false;
  static constexpr double beta = quick ? 1.702 : 1;
  using Fast = SwishFast<quick>;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    A u = A(beta) * x, e = exp(u < A(0) ? u : -u);
    return x * ((u < A(0) ? e : A(1)) / (A(1) + e));
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    A u = A(beta) * x, e = exp(u < A(0) ? u : -u), r = A(1) / (A(1) + e);
    return gy * r * ((u < A(0) ? e : A(1)) + u * e * r);
  }
};

Tensor silu(const Tensor& x) { return unary<Swish<false>>("silu", x); }
Tensor quick_gelu(const Tensor& x) { return unary<Swish<true>>("quick_gelu", x); }

PUPIL_SAMPLES(silu) { unary_samples(s, silu, -6, 6); }
PUPIL_SAMPLES(quick_gelu) { unary_samples(s, quick_gelu, -4, 4); }

}  // namespace pupil
