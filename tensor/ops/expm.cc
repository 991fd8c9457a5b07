// exp(A) = r(A / 2^s)^(2^s). With p(A) = V + U, V even and U odd in A: r = (V - U)^-1 (V + U). The
// derivative L(A, E) goes through the same steps with n x n products only (Al-Mohy and Higham 2009,
// algorithm 6.4), instead of the exponential of a 2n block; L(A^T, G) = L(A, G^T)^T.
#include "../../autograd/samples.h"
#include "../ops.h"
#include "gemm.h"
#include "host_matrix.h"
#include "matrix_map.h"

namespace pupil {
namespace {

struct Degree {
  int degree;
  double norm;  // the largest norm of A for which it serves
};
// For f32 found like the table for f64: the smallest norm at which the series of the backward error
// of the derivative reaches 2^-24.
constexpr Degree kF64[] = {{3, 1.08e-2}, {5, 2.00e-1}, {7, 7.83e-1}, {9, 1.78}, {13, 4.74}};
constexpr Degree kF32[] = {{3, 3.08e-1}, {5, 1.48}, {7, 3.24}};

std::vector<double> pade_coefficients(int m) {
  std::vector<double> b{1};
  for (int j = 1; j <= m; j++) b.push_back(b.back() * (m - j + 1) / ((2.0 * m - j + 1) * j));
  return b;
}

// diagonal I + sum over k of b[first + 2k] even[k].
Tensor polynomial(const std::vector<Tensor>& even, const std::vector<double>& b, size_t first,
                  double diagonal) {
  std::vector<Term> terms;
  for (size_t k = 0; k < even.size(); k++) terms.push_back({b[first + 2 * k], even[k]});
  return combine(terms, diagonal);
}

double one_norm(const Tensor& a) {  // the largest sum of a column
  int64_t n = a.dim(0);
  std::vector<double> column(static_cast<size_t>(n));
  lapack::f64_or_f32(a.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    const T* x = a.data<T>();
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < n; j++) column[size_t(j)] += std::fabs(double(x[i * n + j]));
  });
  double norm = 0;
  for (double c : column) norm = std::max(norm, c);
  return norm;
}

bool symmetric_or_skew(const Tensor& a) {
  int64_t n = a.dim(0);
  bool symmetric = true, skew = true;
  lapack::f64_or_f32(a.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    const T* x = a.data<T>();
    for (int64_t i = 0; i < n && (symmetric || skew); i++)
      for (int64_t j = 0; j <= i; j++) {
        symmetric &= x[i * n + j] == x[j * n + i];
        skew &= x[i * n + j] == -x[j * n + i];
      }
  });
  return symmetric || skew;
}

}  // namespace

Exponential::Exponential(const Tensor& a) {
  double norm = one_norm(a);
  auto table =
      a.dtype() == DType::f64 ? std::span<const Degree>(kF64) : std::span<const Degree>(kF32);
  size_t choice = 0;
  while (choice + 1 < table.size() && norm > table[choice].norm) choice++;
  if (norm > table[choice].norm) squarings_ = int(std::ceil(std::log2(norm / table[choice].norm)));
  int degree = table[choice].degree;
  pade_ = pade_coefficients(degree);
  const std::vector<double>& b = pade_;
  a_ = combine({{std::ldexp(1.0, -squarings_), a}});

  even_ = {product(a_, a_)};
  if (degree >= 5) even_.push_back(product(even_[0], even_[0]));
  if (squarings_ > 0 && symmetric_or_skew(a)) {
    // For a normal matrix |A|_2 = |A^4|_2^(1/4) <= |A^4|_1^(1/4), up to sqrt(n) below |A|_1.
    double closer = std::pow(one_norm(even_[1]), 0.25);
    int fewer = std::min(squarings_, int(std::floor(std::log2(table[choice].norm / closer))));
    if (fewer > 0) {
      squarings_ -= fewer;
      a_ = combine({{std::ldexp(1.0, fewer), a_}});
      even_ = {combine({{std::ldexp(1.0, 2 * fewer), even_[0]}}),
               combine({{std::ldexp(1.0, 4 * fewer), even_[1]}})};
    }
  }
  if (degree >= 7) even_.push_back(product(even_[1], even_[0]));
  if (degree == 9) even_.push_back(product(even_[1], even_[1]));
  Tensor v;
  if (degree == 13) {
    const Tensor &a2 = even_[0], &a4 = even_[1], &a6 = even_[2];
    odd_high_ = combine({{b[9], a2}, {b[11], a4}, {b[13], a6}});
    even_high_ = combine({{b[8], a2}, {b[10], a4}, {b[12], a6}});
    odd_ = combine({{b[3], a2}, {b[5], a4}, {b[7], a6}}, b[1]);
    v = combine({{b[2], a2}, {b[4], a4}, {b[6], a6}}, b[0]);
    product_into(odd_, a6, odd_high_, 1);
    product_into(v, a6, even_high_, 1);
  } else {
    odd_ = polynomial(even_, b, 3, b[1]);
    v = polynomial(even_, b, 2, b[0]);
  }
  Tensor u = product(a_, odd_);
  denominator_.emplace(combine({{1, v}, {-1, u}}));
  value_ = denominator_->solve(combine({{1, v}, {1, u}})).contiguous();
  for (int k = 0; k < squarings_; k++) {
    roots_.push_back(value_);
    value_ = product(value_, value_);
  }
}

// M_2k is the derivative of A^2k in the direction E.
Tensor Exponential::derivative(const Tensor& e) const {
  const std::vector<double>& b = pade_;
  bool high = bool(odd_high_);
  auto rule = [](const Tensor& x, const Tensor& dx, const Tensor& y, const Tensor& dy) {
    Tensor d = product(x, dy);  // of x y
    product_into(d, dx, y, 1);
    return d;
  };
  Tensor direction = combine({{std::ldexp(1.0, -squarings_), e}});
  std::vector<Tensor> m{rule(a_, direction, a_, direction)};
  if (even_.size() > 1) m.push_back(rule(even_[0], m[0], even_[0], m[0]));
  if (even_.size() > 2) m.push_back(rule(even_[1], m[1], even_[0], m[0]));
  if (even_.size() > 3) m.push_back(rule(even_[1], m[1], even_[1], m[1]));
  Tensor odd = polynomial(m, b, 3, 0), dv = polynomial(m, b, 2, 0);  // to degree 7
  if (high) {
    product_into(odd, even_[2], combine({{b[9], m[0]}, {b[11], m[1]}, {b[13], m[2]}}), 1);
    product_into(odd, m[2], odd_high_, 1);
    product_into(dv, even_[2], combine({{b[8], m[0]}, {b[10], m[1]}, {b[12], m[2]}}), 1);
    product_into(dv, m[2], even_high_, 1);
  }
  Tensor du = rule(a_, direction, odd_, odd);
  // (V - U) dr = dV + dU - (dV - dU) r
  const Tensor& r = roots_.empty() ? value_ : roots_[0];
  Tensor right = combine({{1, dv}, {1, du}});
  product_into(right, combine({{-1, dv}, {1, du}}), r, 1);
  Tensor d = denominator_->solve(right).contiguous();
  for (const Tensor& root : roots_) d = rule(root, d, root, d);
  return d;
}

Tensor Exponential::gradient(const Tensor& g) const {
  return transposed(derivative(transposed(g).contiguous())).contiguous();
}

Tensor expm(const Tensor& a) {
  require_square("expm", a);
  Device device = a.device();
  auto map = std::make_shared<Exponential>(host_matrix("expm", a));
  Tensor value = map->value().to(device);
  return record("expm", value, {a}, [map, device](Backward& b) {
    b[0].give(map->gradient(host_gradient(b.gy)).to(device));
  });
}

PUPIL_SAMPLES(expm) {
  test::SampleOptions floats{.bf16 = false};
  for (double size : {0.01, 0.3, 1.0, 2.0, 5.0, 12.0})  // every degree, some squarings
    s.add(
        concat("size ", size), {{4, 4}}, [size](auto& v) { return expm(scale(v[0], size / 2)); },
        floats);
  s.add(
      "transposed", {{3, 3}},
      [](auto& v) {
        return expm(permute(v[0], {1, 0}));
      },
      floats);
  s.add(
      "zero", {{3, 3}}, [](auto& v) { return expm(scale(v[0], 0)); }, floats);
  s.add(
      "one element", {{1, 1}}, [](auto& v) { return expm(v[0]); }, floats);
  s.add(
      "empty", {{0, 0}}, [](auto& v) { return expm(v[0]); }, floats);
  s.add_error("not square", {{2, 3}}, [](auto& v) { return expm(v[0]); });
  s.add_error("batch", {{2, 3, 3}}, [](auto& v) { return expm(v[0]); });
}

}  // namespace pupil
