// BLAS and LAPACK on row-major matrices in host memory, f64 or f32 (OpenBLAS). No graph. Shapes are
// the caller's business; LAPACK's own errors throw.
#pragma once
#include "tensor.h"

namespace pupil::lapack {

// dispatch() for the two dtypes that LAPACK has here.
template <class F>
void f64_or_f32(DType dtype, F&& f) {
  PUPIL_CHECK(dtype == DType::f64 || dtype == DType::f32, "lapack: ", name_of(dtype));
  dtype == DType::f64 ? f(tag<double>{}) : f(tag<float>{});
}

// c = a b + beta c. a and b may be transposed views, c has dense rows.
void product(const Tensor& a, const Tensor& b, const Tensor& c, double beta = 0);

// LU factors of A^T, which row-major A is to LAPACK.
struct Lu {
  Tensor factors;
  std::vector<int> pivots;
  bool singular = false;  // a pivot is exactly 0
  explicit Lu(const Tensor& a);
  Tensor solve(const Tensor& b, bool transposed = false) const;  // A X = B, or A^T X = B
};

// A (m, n) = u (m, k) diag(s) vt (k, n); f64 only.
void svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt);

// A (m, n), m >= n, = q r with diag(r) >= 0; returns det q where q is square. f64 only.
int qr(const Tensor& a, const Tensor& q, const Tensor& r);

// X with X r^T = b, r upper triangular with a diagonal without zeros; f64 only.
Tensor solve_upper_transposed(const Tensor& b, const Tensor& r);

}  // namespace pupil::lapack
