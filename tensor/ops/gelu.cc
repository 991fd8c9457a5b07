// How to add an op: write its maths as functors at namespace scope, call a launcher, record() the
// backward, declare samples; then one line in ops.h.
#include "gelu.h"

#include "unary.h"

namespace pupil {

// x Phi(x), Hendrycks and Gimpel 2016 (arXiv 1606.08415), eq. 2.
struct Gelu {
  static constexpr bool saves_x = true, saves_y = false;
  using Fast = GeluFast;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return x * A(0.5) * (A(1) + erf(x * A(0.70710678118654752440)));
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    A cdf = A(0.5) * (A(1) + erf(x * A(0.70710678118654752440)));
    A density = A(0.39894228040143267794) * exp(A(-0.5) * x * x);
    return gy * (cdf + x * density);
  }
};

// The paper's tanh approximation.
struct GeluTanh {
  static constexpr bool saves_x = true, saves_y = false;
  using Fast = GeluTanhFast;
  template <class A>
  PUPIL_HD static A inner(A x) {
    return A(0.79788456080286535588) * (x + A(0.044715) * x * x * x);
  }
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return A(0.5) * x * (A(1) + tanh(inner(x)));
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    A t = tanh(inner(x));
    A slope = A(0.79788456080286535588) * (A(1) + A(3 * 0.044715) * x * x);
    return gy * (A(0.5) * (A(1) + t) + A(0.5) * x * (A(1) - t * t) * slope);
  }
};

Tensor gelu(const Tensor& x, bool tanh_form) {
  return tanh_form ? unary("gelu", x, GeluTanh{}, {{"tanh", 1}})
                   : unary("gelu", x, Gelu{}, {{"tanh", 0}});
}

PUPIL_SAMPLES(gelu) {
  for (bool tanh_form : {false, true}) {
    auto f = [=](auto& v) { return gelu(v[0], tanh_form); };
    std::string form = tanh_form ? "tanh " : "";
    s.add(form + "matrix", {{3, 5}}, f);
    s.add(form + "vector", {{257}}, f, {.low = -6, .high = 6});
    s.add(form + "scalar", {{}}, f);
    s.add(form + "empty", {{0, 3}}, f);
    s.add(form + "transposed", {{4, 3}}, [=](auto& v) {
      return gelu(permute(v[0], {1, 0}), tanh_form);
    });
  }
}

}  // namespace pupil
