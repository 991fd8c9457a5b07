#include "procrustes.h"

#include "../tensor/lapack.h"
#include "../tensor/ops.h"
#include "kd.h"
#include "method.h"

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
  auto with_pull = [&](double beta) {  // [procrustes 2]
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
      if (!(s[i % dim] > o.truncate_ratio * s[0])) column[i] = 0;  // [procrustes 5]
  }
  Tensor r = empty({dim, dim}, DType::f64);  // [procrustes 3]
  lapack::product(d.u, d.vt, r);
  if (!o.rotation) return r;
  Tensor q = empty({dim, dim}, DType::f64), upper = empty({dim, dim}, DType::f64);
  if (lapack::qr(r, q, upper) > 0) return r;
  for (int64_t i = 0; i < dim; i++) d.u.data<double>()[i * dim + dim - 1] *= -1;  // [procrustes 4]
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
    // [procrustes 1]
    problem.add(standardize_logits(slice(strong, 0, begin, end), 1e-6).values,
                standardize_logits(slice(weak, 0, begin, end), 1e-6).values);
  }
  return problem.solve(o);
}

Method procrustes_pipeline() {
  Method m;
  m.name = "procrustes";
  m.summary = "the rotation from a strong model's logits to a weak one's, in closed form";
  m.source = "Park et al., AAAI 2026, eq. 10 to 12; Schoenemann 1966";
  m.options = {
      {"transmiter.beta", ProcrustesOptions().beta, "pull to the identity; not divided by n",
       "official script"},
      {"transmiter.rotation", ProcrustesOptions().rotation, "det R = +1", "official code, off"}};
  m.explanation.symbols = {
      {"z_s, z_t", "(n, M)", "zero-shot logits of the weak and the strong model, the same images"},
      {"H_s, H_t", "(n, M)", "the same, standardised; in latents both are multiplied by W'"},
      {"R", "(M, M)", "minimises |H_t R - H_s|^2 + beta |R - I|^2 over orthogonal matrices"}};
  m.explanation.equations = {
      {"1", "H = (z - mu) / (sd + 1e-6) of each row"},
      {"2", "P = H_t' H_s + beta I, in f64, block by block; beta = 0: the limit"},
      {"3", "P = U S V', R = U V'"},
      {"4", "rotation: the last column of U changes its sign when det R = -1"},
      {"5", "truncate_ratio t >= 0: only singular values above t times the largest count"}};
  m.explanation.cases = {"transmiter.procrustes", "transmiter.transfer"};
  return m;
}

}  // namespace pupil::methods
