#include "procrustes.h"

#include "../tensor/lapack.h"
#include "../tensor/ops.h"
#include "kd.h"

namespace pupil::methods {

constexpr int64_t kBlock = 1024;  // rows that are converted to f64 at a time

Procrustes::Procrustes(int64_t dim) : product_(zeros({dim, dim}, DType::f64)) {}

void Procrustes::add(const Tensor& target, const Tensor& source) {
  int64_t n = target.dim(0), dim = product_.dim(0);
  PUPIL_CHECK(target.rank() == 2 && target.shape() == source.shape() && target.dim(1) == dim,
              "procrustes: target ", target.shape(), " and source ", source.shape(),
              " must be (n, ", dim, ")");
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    int64_t end = std::min(n, begin + kBlock);
    auto block = [&](const Tensor& x) {
      return slice(x.detach(), 0, begin, end).to(DType::f64).contiguous();
    };
    Tensor t = block(target), s = block(source);
    lapack::product(alias(t, {dim, end - begin}, {1, dim}), s, product_, 1);
  }
  rows_ += n;
}

Tensor Procrustes::solve(const ProcrustesOptions& o) const {
  PUPIL_CHECK(rows_ > 0, "procrustes: no rows");
  PUPIL_CHECK(o.beta >= 0 && std::isfinite(o.beta), "procrustes: beta ", o.beta, " must be >= 0");
  int64_t dim = product_.dim(0);
  auto with_pull = [&](double beta) {  // eq. 11: P = T^T S + beta I
    Tensor p = product_.clone();
    for (int64_t i = 0; i < dim; i++) p.data<double>()[i * dim + i] += beta;
    return p;
  };
  double beta = o.beta;
  if (beta == 0) beta = 1e-12 * mean(svd(product_).s).item();
  Svd d = svd(with_pull(beta));
  if (o.truncate_ratio >= 0) {
    double* column = d.u.data<double>();
    const double* s = d.s.data<double>();
    for (int64_t i = 0; i < dim * dim; i++)
      if (!(s[i % dim] > o.truncate_ratio * s[0])) column[i] = 0;
  }
  Tensor r = empty({dim, dim}, DType::f64);  // eq. 12: R = U V^T
  lapack::product(d.u, d.vt, r);
  if (!o.rotation) return r;
  Tensor q = empty({dim, dim}, DType::f64), upper = empty({dim, dim}, DType::f64);
  if (lapack::qr(r, q, upper) > 0) return r;
  for (int64_t i = 0; i < dim; i++) d.u.data<double>()[i * dim + dim - 1] *= -1;
  lapack::product(d.u, d.vt, r);
  return r;
}

Tensor logit_rotation(const Tensor& weak, const Tensor& strong, const ProcrustesOptions& o) {
  NoGrad no_grad;
  PUPIL_CHECK(weak.rank() == 2 && weak.shape() == strong.shape(), "logit_rotation: weak ",
              weak.shape(), " and strong ", strong.shape());
  Procrustes problem(weak.dim(1));
  for (int64_t begin = 0; begin < weak.dim(0); begin += kBlock) {
    int64_t end = std::min(weak.dim(0), begin + kBlock);
    problem.add(standardize_logits(slice(strong, 0, begin, end), 1e-6).values,
                standardize_logits(slice(weak, 0, begin, end), 1e-6).values);
  }
  return problem.solve(o);
}

}  // namespace pupil::methods
