// What many ops share: NumPy's shape rule, its adjoint, the axes of a reduction, and the check of
// the dtype.
#pragma once
#include "../ops.h"

namespace pupil {

// The common shape of a and b; throws with the op's name when there is none.
Shape broadcast_shape(const char* op, const Shape& a, const Shape& b);

// x summed over the axes along which `target` was broadcast to its shape. Not recorded; x itself
// when nothing was broadcast.
Tensor sum_to(const Tensor& x, const Shape& target);

// `axis` counted from 0; a negative one counts from the end. Throws with the op's name.
int checked_axis(const char* op, const Shape& x, int axis);

// Which axes a reduction runs over, the shapes of its result and how many elements become one. No
// axes mean all. Throws with the op's name when one is wrong or repeated.
struct ReducedAxes {
  bool marked[kMaxRank]{};
  Shape axes, kept, dropped;  // their numbers; sizes with them as 1 and without them
  int64_t count = 1;
};
ReducedAxes reduced_axes(const char* op, const Shape& x, const std::vector<int>& axes);

// The larger or the smaller of two numbers; NaN stays NaN.
template <bool largest>
struct Choose {
  template <class A>
  PUPIL_HD A operator()(A a, A b) const {
    return (largest ? a > b : a < b) || a != a ? a : b;
  }
};

// Throws with the op's name unless x is f64, f32 or bf16.
void require_floating(const char* op, const Tensor& x);

}  // namespace pupil
