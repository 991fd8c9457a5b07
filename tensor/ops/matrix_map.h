// The two maps from square matrices to invertible ones, with what their gradients need again; used
// by expm, cayley and orthogonal.
#pragma once
#include "../lapack.h"

namespace pupil {

// exp(A) by scaling and squaring of a Pade approximant r = p(A) / p(-A) (Higham 2005). The limits
// on the norm are those under which value and derivative are both accurate to rounding (Al-Mohy and
// Higham 2009, table 6.1).
class Exponential {
 public:
  explicit Exponential(const Tensor& a);  // dense, square, host memory
  // Once: where there were squarings the gradient does without it.
  Tensor value() { return roots_.empty() ? value_ : std::exchange(value_, Tensor()); }
  Tensor gradient(const Tensor& g) const;  // L(A^T, G): the cotangent of A

 private:
  Tensor derivative(const Tensor& e) const;  // L(A, E)

  int squarings_ = 0;
  std::vector<double> pade_;           // coefficients of p
  Tensor a_;                           // A / 2^squarings
  std::vector<Tensor> even_;           // its powers 2, 4, 6, 8
  Tensor odd_, odd_high_, even_high_;  // U / A, and at degree 13 the factors of A^6 in U / A and V
  std::optional<lapack::Lu> denominator_;
  std::vector<Tensor> roots_;  // r, r^2, r^4 .. before the last squaring
  Tensor value_;
};

// E = (I - A/2)^-1 (I + A/2). A-bar = 1/2 (I - A/2)^-T G (I + E)^T.
class Cayley {
 public:
  explicit Cayley(const Tensor& a);
  Tensor value() const { return value_; }
  Tensor gradient(const Tensor& g) const;

 private:
  std::optional<lapack::Lu> denominator_;
  Tensor value_;
};

}  // namespace pupil
