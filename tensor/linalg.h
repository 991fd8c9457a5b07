// Dense linear algebra on one matrix, f64 or f32: factorisations by LAPACK, gradients ours. Inputs
// may be views; every op throws Error with its name and the shapes for a wrong rank or shape and
// for a NaN or infinite element. The same thread count gives the same bits. svd, polar, qr and haar
// work in f64 and round. On a GPU tensor these ops copy to the host and back.
#pragma once
#include "../autograd/autograd.h"

namespace pupil {

// svd.cc -- A (m, n) = U diag(s) V^T with k = min(m, n): u (m, k), s (k) descending and >= 0,
// vt (k, n). The signs of the singular vectors are LAPACK's. The gradient flows through s alone,
// A-bar = U diag(s-bar) V^T, defined for equal and zero singular values too; a gradient that
// arrives at u or vt throws.
struct Svd {
  Tensor u, s, vt;
};
Svd svd(const Tensor& a);

// polar.cc -- A (m, n), m >= n: A = U H, u (m, n) with orthonormal columns, h (n, n) symmetric and
// positive semi-definite . det U = sign(det A): there is no correction to a rotation.
// A gradient that arrives at u or h throws.
struct Polar {
  Tensor u, h;
};
Polar polar(const Tensor& a);

// qr.cc -- A (m, n), m >= n: thin A = Q R, q (m, n), r (n, n) upper triangular with diag(R) >= 0.
// The gradient needs full column rank and throws without it.
struct Qr {
  Tensor q, r;
};
Qr qr(const Tensor& a);

// haar.cc -- standard normal numbers (n, k), n >= k -> their Q; for n = k the first column is
// negated if det Q < 0. Haar distributed on SO(n) (Mezzadri 2007). Not differentiable.
Tensor haar(const Tensor& normal);

// solve.cc -- X with A X = B; A (n, n), B (n, k). Throws for a singular A.
Tensor solve(const Tensor& a, const Tensor& b);

// expm.cc -- exp(A) of any square A, by scaling and squaring (Higham 2005; the gradient is the
// Frechet derivative of Al-Mohy and Higham 2009 at A^T).
Tensor expm(const Tensor& a);

// cayley.cc -- (I - A/2)^-1 (I + A/2), A (n, n): a rotation for a skew-symmetric A.
Tensor cayley(const Tensor& a);

// orthogonal.cc -- W (D, M) = the first M columns of base map(L - L^T), L the strictly lower
// triangle of x (D, M) padded with zero columns; D >= M. base (D, D) is a constant. Park et al.
// 2026, equation 5; Lezcano-Casado and Martinez-Rubio 2019.
enum class OrthogonalMap { expm, cayley };
Tensor orthogonal(const Tensor& x, const Tensor& base, OrthogonalMap map = OrthogonalMap::expm);

}  // namespace pupil
