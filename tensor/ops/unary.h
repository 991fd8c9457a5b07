// One template makes a function of one variable an op: CPU, CUDA, every dtype, recorded, in-place
// backward. A functor gives fwd(x) and bwd(x, y, gy) and says which of x and y its backward reads;
// where the maths library does not vectorise, `using Fast` names its float32 twin for the CPU,
// which also serves bf16 and says `widest` (launch.h).
#pragma once
#include "../../autograd/samples.h"
#include "../launch.h"
#include "../ops.h"
#include "broadcast.h"

namespace pupil {

template <class F, class T>
struct UnaryForward {
  static constexpr bool widest = requires { F::widest; };
  F f;
  const T* x;
  T* y;
  PUPIL_HD void operator()(int64_t i) const { y[i] = T(f.fwd(acc_t<T>(x[i]))); }
};

template <class F, class T>
struct UnaryBackward {
  static constexpr bool widest = requires { F::widest; };
  F f;
  const T *x, *y, *gy;
  T* gx;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    // Which pointers are read is known when the functor is compiled.
    gx[i] = T(f.bwd(F::saves_x ? A(x[i]) : A(0), F::saves_y ? A(y[i]) : A(0), A(gy[i])));
  }
};

// A tensor whose memory is dense in some order: elementwise ops keep image layouts.
inline Tensor dense(const Tensor& x) { return x.layout() == Layout::strided ? x.contiguous() : x; }

// Calls run(functor, tag) with the functor that this dtype, device and mode ask for.
template <class F, class Run>
void dispatch_unary(DType dtype, Device device, const F& f, const Run& run) {
  if constexpr (requires { typename F::Fast; }) {
    using Fast = typename F::Fast;
    if (cpu_fast(acc_dtype(dtype), device))
      return dtype == DType::bf16 ? run(Fast{}, tag<bf16>{}) : run(Fast{}, tag<float>{});
  }
  dispatch(dtype, [&](auto t) { run(f, t); });
}

template <class F>
Tensor unary(const char* op, const Tensor& input, F f = {}, Attributes options = {}) {
  require_floating(op, input);
  Tensor x = dense(input).detach(), y = empty_like(x);
  dispatch_unary(x.dtype(), x.device(), f, [&](auto chosen, auto t) {
    using T = typename decltype(t)::type;
    map(x.device(), x.numel(), UnaryForward<decltype(chosen), T>{chosen, x.data<T>(), y.data<T>()});
  });
  Tensor saved_x = F::saves_x ? x : Tensor(), saved_y = F::saves_y ? y.detach() : Tensor();
  return record(op, y, {input}, options, [f, saved_x, saved_y](Backward& b) {
    Tensor gy = dense(b.gy);
    b.gy = Tensor();
    Tensor gx = gy.sole_owner() ? gy : empty_like(gy);  // donate gy's buffer to its only reader
    dispatch_unary(gy.dtype(), gy.device(), f, [&](auto chosen, auto t) {
      using T = typename decltype(t)::type;
      map(gy.device(), gy.numel(),
          UnaryBackward<decltype(chosen), T>{chosen, saved_x ? saved_x.data<T>() : nullptr,
                                             saved_y ? saved_y.data<T>() : nullptr, gy.data<T>(),
                                             gx.data<T>()});
    });
    gy = Tensor();
    b[0].give(std::move(gx));
  });
}

// The samples of an op of one variable, its values between low and high.
void unary_samples(auto& s, Tensor (*f)(const Tensor&), double low, double high) {
  auto call = [f](auto& v) { return f(v[0]); };
  s.add("matrix", {{3, 5}}, call, {.low = low, .high = high});
  s.add("long", {{1031}}, call, {.low = low, .high = high});  // vector loops and their remainders
  s.add("scalar", {{}}, call, {.low = low, .high = high});
  s.add("one element", {{1, 1}}, call, {.low = low, .high = high});
  s.add("empty", {{0, 3}}, call, {.low = low, .high = high});
  s.add("transposed", {{4, 3}},
        [f](auto& v) {
          return f(permute(v[0], {1, 0}));
        },
        {.low = low, .high = high});
  s.add_error("integers", {{3}}, [f](auto& v) { return f(v[0].to(DType::i32)); });
  s.add("reused", {{4, 3}}, [f](auto& v) { return mul(f(v[0]), v[0]); },
        {.low = low, .high = high});
}

}  // namespace pupil
