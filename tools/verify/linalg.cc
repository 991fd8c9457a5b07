// linalg.*: tensor/linalg.h.
#include "../../tensor/linalg.h"

#include "../../tensor/ops.h"
#include "case.h"

namespace pupil::verify {
namespace {

void svd_case(Case& c) {
  Svd d = svd(c.get("in.a"));
  c.result("s", d.s);
  int64_t rank = c.integer("rank", d.s.dim(0));
  NoGrad no_grad;
  c.result("reconstruction",
           matmul(mul(slice(d.u, 1, 0, rank), slice(d.s, 0, 0, rank)), slice(d.vt, 0, 0, rank)));
}

void polar_case(Case& c) {
  Polar p = polar(c.get("in.a"));
  c.result("u", p.u);
  c.result("h", p.h);
}

void qr_case(Case& c) {
  Qr f = qr(c.get("in.a"));
  c.result("q", f.q);
  c.result("r", f.r);
}

template <Tensor (*f)(const Tensor&)>
void exponential(Case& c) {
  c.result("e", f(c.get("in.a")));
}

void orthogonal_case(Case& c) {
  std::string map = c.text("map", "expm");
  if (map != "expm" && map != "cayley") throw Unsupported("map = " + map);
  c.result("w", orthogonal(c.get("in.x"), c.constant("in.base"),
                           map == "expm" ? OrthogonalMap::expm : OrthogonalMap::cayley));
}

// The functions of ops.* name their tensors otherwise.
void matrix_exp_case(Case& c) { c.result("y", expm(c.get("in.x"))); }
void solve_case(Case& c) { c.result("x", solve(c.get("in.a"), c.get("in.b"))); }
void svdvals_case(Case& c) { c.result("s", svd(c.get("in.x")).s); }
void polar_factor_case(Case& c) { c.result("w", polar(c.get("in.x")).u); }

void haar_case(Case& c) { c.result("q", haar(c.get("in.normal"))); }

}  // namespace

void add_linalg(Adapters& all) {
  all["linalg.svd"] = svd_case;
  all["linalg.polar"] = polar_case;
  all["linalg.qr"] = qr_case;
  all["linalg.expm"] = exponential<expm>;
  all["linalg.cayley"] = exponential<cayley>;
  all["linalg.orthogonal"] = orthogonal_case;
  all["linalg.haar"] = haar_case;
  all["ops.matrix_exp"] = matrix_exp_case;
  all["ops.solve"] = solve_case;
  all["ops.svdvals"] = svdvals_case;
  all["ops.polar"] = polar_factor_case;
}

}  // namespace pupil::verify
