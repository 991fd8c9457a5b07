// What many ops share: NumPy's shape rule, its adjoint, and the check of the dtype.
#pragma once
#include "../ops.h"

namespace pupil {

// The common shape of a and b; throws with the op's name when there is none.
Shape broadcast_shape(const char* op, const Shape& a, const Shape& b);

// x summed over the axes along which `target` was broadcast to its shape. Not recorded; x itself
// when nothing was broadcast.
Tensor sum_to(const Tensor& x, const Shape& target);

// Throws with the op's name unless x is f64, f32 or bf16.
void require_floating(const char* op, const Tensor& x);

}  // namespace pupil
