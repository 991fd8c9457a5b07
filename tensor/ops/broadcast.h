// What the broadcasting ops share: NumPy's shape rule and its adjoint.
#pragma once
#include "../ops.h"

namespace pupil {

// The common shape of a and b; throws with the op's name when there is none.
Shape broadcast_shape(const char* op, const Shape& a, const Shape& b);

// x summed over the axes along which `target` was broadcast to its shape. Not recorded; x itself
// when nothing was broadcast.
Tensor sum_to(const Tensor& x, const Shape& target);

}  // namespace pupil
