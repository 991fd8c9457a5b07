// A loss that one pass per row computes together with its gradient: only that gradient is kept for
// the backward.
#pragma once
#include "../autograd/autograd.h"
#include "../tensor/launch.h"
#include "../tensor/ops.h"

namespace pupil::methods {

template <class A>
struct SumOfRows {
  const A* loss;
  A* out;
  int64_t n;
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t) const {
    A value = team.reduce(n, A(0), Add{}, [&](int64_t i) { return loss[i]; });
    team.each(1, [&](int64_t) { out[0] = value; });
  }
};

template <class T>
struct ScaleInPlace {
  T* x;
  const acc_t<T>* factor;
  PUPIL_HD void operator()(int64_t i) const { x[i] = T(acc_t<T>(x[i]) * factor[0]); }
};

// The recorded sum of `losses` (n), in the accumulation type. gradient: d sum / d student; the
// teacher is a constant.
inline Tensor row_loss(const char* name, const Tensor& student, const Tensor& teacher,
                       const Tensor& losses, Tensor gradient) {
  Tensor out = empty({}, losses.dtype(), losses.device());
  dispatch(losses.dtype(), [&](auto type) {
    using A = typename decltype(type)::type;
    if constexpr (std::is_same_v<A, acc_t<A>>)
      rows(losses.device(), 1, SumOfRows<A>{losses.data<A>(), out.data<A>(), losses.numel()});
  });
  return record(name, out, {student, teacher}, [gradient](Backward& b) mutable {
    b[1].none();
    dispatch(gradient.dtype(), [&](auto type) {
      using T = typename decltype(type)::type;
      map(gradient.device(), gradient.numel(),
          ScaleInPlace<T>{gradient.data<T>(), b.gy.data<acc_t<T>>()});
    });
    b[0].give(std::move(gradient));
  });
}

}  // namespace pupil::methods
