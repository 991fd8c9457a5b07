#include "host_matrix.h"

#include "../lapack.h"
#include "../launch.h"
#include "gemm.h"

namespace pupil {

Tensor host_matrix(const char* op, const Tensor& a) {
  PUPIL_CHECK(a.rank() == 2, op, ": a matrix expected, got ", a.shape());
  PUPIL_CHECK(a.dtype() == DType::f64 || a.dtype() == DType::f32, op, ": f64 or f32 expected, got ",
              name_of(a.dtype()), " ", a.shape());
  Tensor host = a.detach().to(Device{}).contiguous();
  lapack::f64_or_f32(host.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    const T* x = host.data<T>();
    for (int64_t i = 0; i < host.numel(); i++)
      PUPIL_CHECK(std::isfinite(float(x[i])) || std::isfinite(double(x[i])), op, ": element ", i,
                  " of ", a.shape(), " is ", double(x[i]));
  });
  return host;
}

void require_square(const char* op, const Tensor& a) {
  PUPIL_CHECK(a.rank() == 2 && a.dim(0) == a.dim(1), op, ": a square matrix expected, got ",
              a.shape());
}

Tensor host_gradient(const Tensor& gy) { return gy.detach().to(Device{}).contiguous(); }

void product_into(const Tensor& to, const Tensor& a, const Tensor& b, double beta) {
  if (to.dtype() == DType::f64 && !plain_mode())
    lapack::product(a, b, to, beta);
  else
    gemm(a, b, to, float(beta));
}

Tensor product(const Tensor& a, const Tensor& b) {
  Tensor c = empty({a.dim(0), b.dim(1)}, a.dtype());
  product_into(c, a, b);
  return c;
}

Tensor combine(const std::vector<Term>& terms, double diagonal) {
  const Tensor& first = terms[0].matrix;
  Tensor out = empty(first.shape(), first.dtype());
  int64_t n = out.dim(0), columns = out.dim(1);
  lapack::f64_or_f32(out.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    T* to = out.data<T>();
    std::vector<std::pair<T, const T*>> parts;
    for (const Term& term : terms)
      parts.emplace_back(T(term.factor), term.matrix.template data<T>());
    const auto* part = parts.data();
    size_t count = parts.size();
    parallel_for(n, out.numel() * int64_t(count), [=](int64_t i) {
      T* row = to + i * columns;
      for (int64_t j = 0; j < columns; j++)
        row[j] = part[0].first * part[0].second[i * columns + j];
      for (size_t k = 1; k < count; k++) {
        T factor = part[k].first;
        const T* from = part[k].second + i * columns;
        for (int64_t j = 0; j < columns; j++) row[j] += factor * from[j];
      }
      if (i < columns) row[i] += T(diagonal);
    });
  });
  return out;
}

Tensor without_gradient(const char* op, const char* why, const Tensor& out, const Tensor& input) {
  return record(op, out, {input}, [op, why](Backward&) { throw Error(concat(op, ": ", why)); });
}

}  // namespace pupil
