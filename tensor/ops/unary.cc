// Mathematical functions of one variable: see unary.h for how a functor becomes an op.
#include "unary.h"

#include "vector_math.h"

namespace pupil {

struct ExpFast {
  static constexpr bool saves_x = false, saves_y = true, widest = true;
  PUPIL_HD float fwd(float x) const { return vector_exp(x); }
  PUPIL_HD float bwd(float, float y, float gy) const { return gy * y; }
};
struct Exp {
  static constexpr bool saves_x = false, saves_y = true;
  using Fast = ExpFast;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return exp(x);
  }
  template <class A>
  PUPIL_HD A bwd(A, A y, A gy) const {
    return gy * y;
  }
};

struct Log {
  static constexpr bool saves_x = true, saves_y = false;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return log(x);
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    return gy / x;
  }
};

struct Sqrt {
  static constexpr bool saves_x = false, saves_y = true;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return sqrt(x);
  }
  template <class A>
  PUPIL_HD A bwd(A, A y, A gy) const {
    return y == A(0) ? A(0) : gy / (A(2) * y);
  }
};

struct Tanh {
  static constexpr bool saves_x = false, saves_y = true;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return tanh(x);
  }
  template <class A>
  PUPIL_HD A bwd(A, A y, A gy) const {
    return gy * (A(1) - y * y);
  }
};

struct Abs {
  static constexpr bool saves_x = true, saves_y = false;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return x < A(0) ? -x : x;
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    return x > A(0) ? gy : x < A(0) ? -gy : A(0);
  }
};

struct Erf {
  static constexpr bool saves_x = true, saves_y = false;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return erf(x);
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    return gy * A(1.12837916709551257390) * exp(-x * x);  // 2 / sqrt(pi)
  }
};

struct Power {
  static constexpr bool saves_x = true, saves_y = false;
  double exponent;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return pow(x, A(exponent));
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {  // of x^0: 0, at x = 0 too
    return exponent == 0 ? A(0) : gy * A(exponent) * pow(x, A(exponent - 1));
  }
};

struct Square {
  static constexpr bool saves_x = true, saves_y = false;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return x * x;
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    return A(2) * x * gy;
  }
};

struct Scale {
  static constexpr bool saves_x = false, saves_y = false;
  double factor;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return A(factor) * x;
  }
  template <class A>
  PUPIL_HD A bwd(A, A, A gy) const {
    return A(factor) * gy;
  }
};

struct AddScalar {
  static constexpr bool saves_x = false, saves_y = false;
  double summand;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return x + A(summand);
  }
  template <class A>
  PUPIL_HD A bwd(A, A, A gy) const {
    return gy;
  }
};

Tensor exp(const Tensor& x) { return unary<Exp>("exp", x); }
Tensor log(const Tensor& x) { return unary<Log>("log", x); }
Tensor sqrt(const Tensor& x) { return unary<Sqrt>("sqrt", x); }
Tensor tanh(const Tensor& x) { return unary<Tanh>("tanh", x); }
Tensor abs(const Tensor& x) { return unary<Abs>("abs", x); }
Tensor erf(const Tensor& x) { return unary<Erf>("erf", x); }
Tensor pow(const Tensor& x, double exponent) {
  return unary("pow", x, Power{exponent}, {{"exponent", exponent}});
}
Tensor square(const Tensor& x) { return unary<Square>("square", x); }
Tensor scale(const Tensor& x, double factor) {
  return unary("scale", x, Scale{factor}, {{"factor", factor}});
}
Tensor add_scalar(const Tensor& x, double summand) {
  return unary("add_scalar", x, AddScalar{summand}, {{"summand", summand}});
}

PUPIL_SAMPLES(exp) { unary_samples(s, exp, -3, 3); }
PUPIL_SAMPLES(log) { unary_samples(s, log, 0.3, 3); }
PUPIL_SAMPLES(sqrt) { unary_samples(s, sqrt, 0.3, 3); }
PUPIL_SAMPLES(tanh) { unary_samples(s, tanh, -3, 3); }
PUPIL_SAMPLES(abs) { unary_samples(s, abs, -1, -0.1); }
PUPIL_SAMPLES(erf) { unary_samples(s, erf, -2, 2); }
PUPIL_SAMPLES(pow) {
  unary_samples(
      s, [](const Tensor& x) { return pow(x, -1.5); }, 0.5, 2);
  s.add("negative base", {{9}}, [](auto& v) { return pow(v[0], 3); }, {-2, -0.5});
  s.add("exponent 0", {{9}}, [](auto& v) { return pow(v[0], 0); });
}
PUPIL_SAMPLES(square) { unary_samples(s, square, -2, 2); }
PUPIL_SAMPLES(scale) {
  unary_samples(
      s, [](const Tensor& x) { return scale(x, -1.5); }, -2, 2);
}
PUPIL_SAMPLES(add_scalar) {
  unary_samples(
      s, [](const Tensor& x) { return add_scalar(x, 0.25); }, -2, 2);
}

}  // namespace pupil
