// Activations of one number, and the choice among all by name: see unary.h for how a functor
// becomes an op. GELU and SiLU have files of their own.
#include "unary.h"
#include "vector_math.h"

namespace pupil {

struct Relu {
  static constexpr bool saves_x = false, saves_y = true;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return x < A(0) ? A(0) : x;  // NaN stays NaN
  }
  template <class A>
  PUPIL_HD A bwd(A, A y, A gy) const {
    return y > A(0) ? gy : A(0);
  }
};

struct SigmoidFast {
  static constexpr bool saves_x = false, saves_y = true, widest = true;
  PUPIL_HD float fwd(float x) const {
    float e = vector_exp(-fabsf(x));  // in (0, 1]: no overflow on either side
    return (x < 0 ? e : 1.0f) / (1.0f + e);
  }
  PUPIL_HD float bwd(float, float y, float gy) const { return gy * y * (1.0f - y); }
};
struct Sigmoid {
  static constexpr bool saves_x = false, saves_y = true;
  using Fast = SigmoidFast;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    A e = exp(x < A(0) ? x : -x);
    return (x < A(0) ? e : A(1)) / (A(1) + e);
  }
  template <class A>
  PUPIL_HD A bwd(A, A y, A gy) const {
    return gy * y * (A(1) - y);
  }
};

struct Softplus {
  static constexpr bool saves_x = true, saves_y = false;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return (x < A(0) ? A(0) : x) + log1p(exp(x < A(0) ? x : -x));
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    return gy * Sigmoid{}.fwd(x);
  }
};

struct LeakyRelu {
  static constexpr bool saves_x = true, saves_y = false;
  double slope;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return x > A(0) ? x : A(slope) * x;
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    return x > A(0) ? gy : A(slope) * gy;
  }
};

struct HardSwish {  // Howard et al. 2019 (arXiv 1905.02244), section 5.2
  static constexpr bool saves_x = true, saves_y = false;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return x < A(-3) ? A(0) : x > A(3) ? x : x * (x + A(3)) * A(1.0 / 6);
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    return x < A(-3) ? A(0) : x > A(3) ? gy : gy * (x * A(1.0 / 3) + A(0.5));
  }
};

struct Clamp {
  static constexpr bool saves_x = true, saves_y = false;
  double low, high;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return x < A(low) ? A(low) : x > A(high) ? A(high) : x;
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    return x >= A(low) && x <= A(high) ? gy : A(0);
  }
};

struct Relu6 {  // unlike Clamp without a gradient at the bounds
  static constexpr bool saves_x = false, saves_y = true;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return Clamp{0, 6}.fwd(x);
  }
  template <class A>
  PUPIL_HD A bwd(A, A y, A gy) const {
    return y > A(0) && y < A(6) ? gy : A(0);
  }
};

Tensor relu(const Tensor& x) { return unary<Relu>("relu", x); }
Tensor sigmoid(const Tensor& x) { return unary<Sigmoid>("sigmoid", x); }
Tensor softplus(const Tensor& x) { return unary<Softplus>("softplus", x); }
Tensor leaky_relu(const Tensor& x, double negative_slope) {
  return unary("leaky_relu", x, LeakyRelu{negative_slope}, {{"slope", negative_slope}});
}
Tensor hard_swish(const Tensor& x) { return unary<HardSwish>("hard_swish", x); }
Tensor clamp(const Tensor& x, double low, double high) {
  PUPIL_CHECK(low <= high, "clamp: low ", low, " is above high ", high, " for ", x.shape());
  return unary("clamp", x, Clamp{.low = low, .high = high}, {{"low", low}, {"high", high}});
}

Tensor activate(const Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return relu(x);
    case Activation::relu6:
      return unary<Relu6>("clamp", x, {}, {{"low", 0.0}, {"high", 6.0}});
    case Activation::hard_swish:
      return hard_swish(x);
    case Activation::silu:
      return silu(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu(x, true);
    case Activation::quick_gelu:
      return quick_gelu(x);
  }
  PUPIL_CHECK(false, "activate: no such activation");
}

PUPIL_SAMPLES(relu) { unary_samples(s, relu, 0.1, 1); }
PUPIL_SAMPLES(sigmoid) { unary_samples(s, sigmoid, -6, 6); }
PUPIL_SAMPLES(softplus) { unary_samples(s, softplus, -6, 6); }
PUPIL_SAMPLES(leaky_relu) {
  auto f = [](const Tensor& x) { return leaky_relu(x, 0.2); };
  unary_samples(s, f, -2, -0.1);
  s.add("positive", {{9}}, [f](auto& v) { return f(v[0]); }, {0.1, 2});
}
PUPIL_SAMPLES(hard_swish) {
  unary_samples(s, hard_swish, -2.9, 2.9);
  s.add("zero", {{9}}, [](auto& v) { return hard_swish(v[0]); }, {-4, -3.1});
  s.add("identity", {{9}}, [](auto& v) { return hard_swish(v[0]); }, {3.1, 4});
}
PUPIL_SAMPLES(clamp) {
  unary_samples(
      s, [](const Tensor& x) { return clamp(x, -1, 1); }, -0.9, 0.9);
  s.add("cut", {{9}}, [](auto& v) { return clamp(v[0], -1, 1); }, {1.1, 2});
  s.add_error("bounds", {{3}}, [](auto& v) { return clamp(v[0], 1, -1); });
}

}  // namespace pupil
