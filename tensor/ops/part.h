// A piece of a tensor for the inside of an op.
#pragma once
#include "../tensor.h"

namespace pupil {

// Elements begin, begin + step, ... of one axis; shares memory, not recorded.
inline Tensor part(const Tensor& x, int axis, int64_t begin, int64_t count, int64_t step = 1) {
  Shape shape = x.shape(), strides = x.strides();
  int64_t offset = count ? begin * strides[axis] : 0;
  shape[axis] = count;
  strides[axis] *= step;
  return alias(x, shape, strides, offset);
}

}  // namespace pupil
